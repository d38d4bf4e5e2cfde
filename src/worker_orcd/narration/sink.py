"""The stream that lines are written to: one system call per line; failures are counted, never raised."""

import os
import select
import stat
import threading
from collections import deque
from typing import TextIO

LINE_LIMIT = 4096
"""Bytes of a line, its newline included: what POSIX lets a pipe take whole (PIPE_BUF on Linux).

The engine process writes to the same pipe, and longer lines of the two could be torn into each other.
"""

PENDING_LINES = 256
"""Lines that wait for a slow reader of the log; more are lost."""
_POLL_MS = 200


class Sink:
    """A stream whose failures are counted in `lost` instead of raised.

    Writing never waits: no cancel may depend on a reader of the log. Lines that a full pipe does not take at once are
    queued, bounded and in order, for a thread that lives only as long as the queue; lines beyond the bound are lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self.lost = 0
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        # Reentrant: a signal handler may emit an event while its own thread is emitting one.
        self._lock = threading.RLock()
        self._pending: deque[bytes] = deque()
        self._drainer: threading.Thread | None = None
        try:
            self._fd: int | None = _unblocking(stream.fileno())
        except (OSError, ValueError, AttributeError):
            self._fd = None

    def line(self, text: str) -> None:
        """Write `text` and a newline, now or soon, or count it as lost."""
        with self._lock:
            try:
                self._write((text + "\n").encode(self._encoding, "backslashreplace"))
            except Exception:  # noqa: BLE001 - the job comes first, whatever a stream raises
                self.lost += 1

    def flush(self, sec: float) -> None:
        """Wait up to `sec` seconds for queued lines to be written."""
        drainer = self._drainer
        if drainer is not None:
            drainer.join(sec)

    def _write(self, data: bytes) -> None:
        if self._fd is None:
            self._stream.write(data.decode(self._encoding))
            self._stream.flush()
        # A closed stream's descriptor may belong to another socket by now.
        elif self._stream.closed:
            self.lost += 1
        elif self._pending or not self._taken(self._fd, data):
            self._wait_for_room(data)

    def _taken(self, fd: int, data: bytes) -> bool:
        """Write a line whole, if there is room for it now."""
        if not _room(fd, 0):
            return False
        # Not through the stream: a buffer that cannot be flushed at exit would change the exit code.
        try:
            while data:
                data = data[os.write(fd, data) :]
        except BlockingIOError:
            return False
        return True

    def _wait_for_room(self, data: bytes) -> None:
        if len(self._pending) >= PENDING_LINES:
            self.lost += 1
            return
        self._pending.append(data)
        if self._drainer is None:
            self._drainer = threading.Thread(target=self._drain, name="narration", daemon=True)
            self._drainer.start()

    def _drain(self) -> None:
        fd = self._fd
        while fd is not None:
            _room(fd, _POLL_MS)
            with self._lock:
                try:
                    while self._pending and self._taken(fd, self._pending[0]):
                        self._pending.popleft()
                except OSError:  # The reader is gone.
                    self.lost += len(self._pending)
                    self._pending.clear()
                if not self._pending or self._stream.closed:
                    self._drainer = None
                    return


def _unblocking(fd: int) -> int:
    """The same pipe, opened once more so that writes to it never block, whoever else writes to it; other things as
    they are."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return fd


def _room(fd: int, wait_ms: int) -> bool:
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(wait_ms))
