"""The memory file of the prefix store: the front makes it, and each engine that it starts uses it."""

import fcntl
import os

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def prefix_memory(mib: int) -> int:
    """An empty memory file of so many MiB. It takes memory only as it is filled.

    Returns:
        Its descriptor, which programs that this process starts do not inherit by themselves.

    Raises:
        OSError: there cannot be such a file.
    """
    fd = os.memfd_create("worker-orcd-prefixes", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, mib << 20)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
