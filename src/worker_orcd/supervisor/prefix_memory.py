"""The memory file of the prefix store: the front creates it, and each of its engines uses it."""

from worker_orcd.protocol.memory_file import memory_file


def prefix_memory(mib: int) -> int:
    """Make a memory file of this many MiB. Returns its descriptor.

    Raises:
        OSError: the file cannot be made.
    """
    return memory_file("worker-orcd-prefixes", mib << 20)
