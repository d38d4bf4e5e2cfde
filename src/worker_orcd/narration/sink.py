"""Writes log lines to a stream: one system call per line. Failures are counted, never raised."""

import os
import select
import stat
import threading
from collections import deque
from typing import TextIO

LINE_LIMIT = 4096
"""The most bytes of a line, newline included: POSIX guarantees atomic writes to a pipe up to this size (PIPE_BUF).

The engine process writes to the same pipe, so longer lines of the two processes could be interleaved.
"""

PENDING_LINES = 256
"""The most lines that wait for a slow reader of the log. Further lines are lost."""
_POLL_MS = 200


class Sink:
    """A stream for lines. Failures are counted in `lost` instead of raised.

    Writing never waits, because a cancel must not depend on a reader of the log. If a pipe is full, lines are queued,
    up to a bound and in order, for a thread that exists only while the queue does. Lines beyond the bound are lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self.lost = 0
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        # Reentrant: a signal handler may emit an event while the interrupted code emits one.
        self._lock = threading.RLock()
        self._pending: deque[bytes] = deque()
        self._drainer: threading.Thread | None = None
        try:
            self._fd: int | None = _unblocking(stream.fileno())
        except (OSError, ValueError, AttributeError):
            self._fd = None

    def line(self, text: str) -> None:
        """Write `text` and a newline, now or soon, or count the line as lost."""
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
        # The descriptor of a closed stream may belong to another file now.
        elif self._stream.closed:
            self.lost += 1
        elif self._pending or not self._taken(self._fd, data):
            self._wait_for_room(data)

    def _taken(self, fd: int, data: bytes) -> bool:
        """Write a whole line, if there is room for it now. Returns whether it was written."""
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
                except OSError:  # The reader has closed the pipe.
                    self.lost += len(self._pending)
                    self._pending.clear()
                if not self._pending or self._stream.closed:
                    self._drainer = None
                    return


def _unblocking(fd: int) -> int:
    """The same pipe, opened again in non-blocking mode, which does not affect other writers. Other descriptors are
    returned unchanged."""
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
