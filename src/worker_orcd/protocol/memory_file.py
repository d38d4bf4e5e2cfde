"""Anonymous memory files, which front and engine share."""

import fcntl
import os

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Seals. An engine that could shorten a file could end the front with SIGBUS."""


def memory_file(name: str, size: int) -> int:
    """A zero-filled file of this many bytes that cannot be shortened or extended. It takes memory only as it is
    written.

    Returns:
        Its descriptor, which child processes do not inherit by default.

    Raises:
        OSError: the file cannot be made.
    """
    fd = empty_file(name)
    try:
        set_size(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def empty_file(name: str) -> int:
    """A file that gets its size later, by `set_size`.

    Raises:
        OSError: the file cannot be made.
    """
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def set_size(fd: int, size: int) -> None:
    """Give an empty file its final size in bytes.

    Raises:
        OSError: there is no such file, or it has its size.
    """
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
