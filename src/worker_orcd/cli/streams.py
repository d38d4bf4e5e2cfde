"""Handles standard streams that are closed, full, or without a reader.

If standard output cannot be written, the command ends with one line on standard error and exit code 1, which cancels
its job. Output that cannot be written to standard error is dropped.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


class OutputLost(Exception):
    """Standard output cannot be written. The message gives the reason."""

    def __init__(self, why: str) -> None:
        super().__init__(f"cannot write to standard output: {why}")


class GuardedStream:
    """A standard stream that calls `lost` instead of raising an error. None is passed for a closed stream.

    Characters that the encoding cannot express are written as "?".
    """

    def __init__(self, stream: TextIO | None, lost: Callable[[str], None]) -> None:
        self._closed = stream is None
        self._stream = stream or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the end
        self._lost = lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or report a failure. Returns the number of characters."""
        if self._closed and text:
            self._lost(os.strerror(errno.EBADF))
        else:
            self._try(lambda: self._encode(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or report a failure."""
        self._try(self._stream.flush)

    def _encode(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "replace").decode(encoding))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._lost(os.strerror(error.errno) if error.errno else str(error))
        except ValueError as error:  # The stream was closed later.
            self._lost(str(error))


@contextmanager
def guarded() -> Iterator[None]:
    """Guard the standard streams of this process while a command runs.

    Raises:
        SystemExit: with 1, and a line on standard error, if standard output could not be written.
    """
    _occupy_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  # until the end
    sys.stdout = cast(TextIO, GuardedStream(sys.stdout, _raise))
    sys.stderr = cast(TextIO, GuardedStream(sys.stderr, lambda _: None))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputLost as lost:
        _discard(sys.stdout)
        sys.stderr.write(f"worker-orcd: OUTPUT_LOST: {lost}\n")
        raise SystemExit(1) from None
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _raise(why: str) -> None:
    raise OutputLost(why)


def _occupy_descriptors() -> None:
    """Open closed standard descriptors. Otherwise a socket could become standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free descriptor, which is this one.


def _discard(stream: TextIO) -> None:
    """Redirect buffered output to /dev/null, so that the interpreter's last flush does not fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(null, stream.fileno())
    os.close(null)
