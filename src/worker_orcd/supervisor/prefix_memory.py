"""The memory file of the prefix store: the front creates it, and each of its engines uses it."""

from worker_orcd.protocol.memory_file import empty_file, memory_file, set_size

_NAME = "worker-orcd-prefixes"


def prefix_memory(mib: int) -> int:
    """Make a memory file of this many MiB. An engine takes an empty one for no store. Returns its descriptor.

    Raises:
        OSError: the file cannot be made.
    """
    return memory_file(_NAME, mib << 20)


def unsized_prefix_memory() -> int:
    """Make the file before its size is known. Returns its descriptor.

    Raises:
        OSError: the file cannot be made.
    """
    return empty_file(_NAME)


def set_mib(fd: int, mib: int) -> None:
    """Give that file its size.

    Raises:
        OSError: it has a size.
    """
    set_size(fd, mib << 20)
