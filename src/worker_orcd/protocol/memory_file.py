"""Anonymous memory files, which front and engine share."""

import fcntl
import os

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""An engine that could cut a file would end the front by SIGBUS."""


def memory_file(name: str, size: int) -> int:
    """An empty file of this many bytes that cannot be cut or extended. It takes memory only as it is filled.

    Returns:
        Its descriptor, which programs that this process starts do not inherit by themselves.

    Raises:
        OSError: there cannot be such a file.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
