"""Where lines go: one stream, one system call per line, and never a reason to stop working."""

import os
import select
import threading
from typing import TextIO

LINE_LIMIT = 4096
"""Bytes of a line, its newline included: what POSIX lets a pipe take whole (PIPE_BUF on Linux).

The engine process writes to the same pipe, and longer lines of the two could be torn into each other.
"""

_PATIENCE_MS = 50


class Sink:
    """A stream that swallows failure and counts it in `lost`.

    A reader that stalls (a stopped terminal, a pager) costs the worker one wait of 50 ms, then lines, never
    another wait: no cancel may hang on somebody reading the log.
    """

    def __init__(self, stream: TextIO) -> None:
        self.lost = 0
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        # Reentrant, because a signal handler may narrate while its own thread is narrating.
        self._lock = threading.RLock()
        self._stalled = False
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._fd = None

    def line(self, text: str) -> None:
        """Write `text` and a newline, or count it as lost."""
        with self._lock:
            try:
                written = self._write(text + "\n")
            except Exception:  # noqa: BLE001 - whatever a stream raises, the job being told of comes first
                written = False
            if not written:
                self.lost += 1

    def _write(self, text: str) -> bool:
        data = text.encode(self._encoding, "backslashreplace")
        if self._fd is None:
            self._stream.write(data.decode(self._encoding))
            self._stream.flush()
            return True
        # A closed stream's number may by now be somebody else's socket.
        if self._stream.closed or not self._takes_a_line(self._fd):
            return False
        # Not through the stream: what its buffer can't get rid of would spoil the exit code.
        while data:
            data = data[os.write(self._fd, data) :]
        return True

    def _takes_a_line(self, fd: int) -> bool:
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        self._stalled = not poll.poll(0 if self._stalled else _PATIENCE_MS)
        return not self._stalled
