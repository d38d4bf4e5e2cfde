"""The interrupt byte: one byte of memory shared by front and engine.

The front sets it (after its message is in the socket) to say "look at your messages now"; the engine clears it,
*then* looks. ggml asks before every graph node whether the byte is set, so a running step ends within
milliseconds. The byte carries no meaning of its own: a needless one costs a step, a lost one cannot happen.
"""

import ctypes
import mmap
import os


class InterruptByte:
    """A memory file that both processes map. Byte 0 is the flag; the bytes behind it stay zero."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        self._anchor = ctypes.c_char.from_buffer(self._memory)

    @classmethod
    def create(cls) -> "InterruptByte":
        """A fresh one, cleared. Its `fd` is handed to the engine process."""
        fd = os.memfd_create("worker-orcd-interrupt")
        os.ftruncate(fd, mmap.PAGESIZE)
        return cls(fd)

    @property
    def address(self) -> int:
        """Where the flag byte lies in this process; a NUL follows it."""
        return ctypes.addressof(self._anchor)

    def set(self) -> None:
        """Ask the engine to look at its messages now."""
        self._memory[0] = 1

    def clear(self) -> None:
        """Say that messages are about to be looked at."""
        self._memory[0] = 0

    def is_set(self) -> bool:
        """Whether a look is asked for."""
        return self._memory[0] != 0

    def close(self) -> None:
        """Unmap it and close its file."""
        del self._anchor
        self._memory.close()
        os.close(self.fd)
