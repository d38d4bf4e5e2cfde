"""The interrupt byte: one byte of memory shared by front and engine, and a second one for overdue stops.

The front sets a byte (after its message is in the socket) to say "look at your messages now"; the engine clears both,
*then* looks. ggml asks before every graph node whether the byte that may abort this step is set, so a running step
ends within milliseconds. A protected step looks at the second byte only, which the front sets when a
stop has waited for nearly as long as it may. The bytes carry no meaning of their own: a needless one costs a step, a
lost one cannot happen.
"""

import ctypes
import mmap
import os

from worker_orcd.protocol.memory_file import memory_file

_OVERDUE = 2
"""Where the second flag lies."""


class InterruptByte:
    """A memory file that both processes map. Two bytes of it are flags; all others stay zero."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        self._anchor = ctypes.c_char.from_buffer(self._memory)

    @classmethod
    def create(cls) -> "InterruptByte":
        """A fresh one, cleared. Its `fd` is handed to the engine process."""
        return cls(memory_file("worker-orcd-interrupt", mmap.PAGESIZE))

    @property
    def address(self) -> int:
        """Where the flag byte lies in this process; a NUL follows it."""
        return ctypes.addressof(self._anchor)

    @property
    def overdue_address(self) -> int:
        """The same of the flag for overdue stops."""
        return self.address + _OVERDUE

    def set(self) -> None:
        """Ask the engine to look at its messages now."""
        self._memory[0] = 1

    def set_overdue(self) -> None:
        """Ask the engine to look at its messages now, also if it computes a protected step."""
        self._memory[0] = self._memory[_OVERDUE] = 1

    def clear(self) -> None:
        """Say that messages are about to be looked at."""
        self._memory[0] = self._memory[_OVERDUE] = 0

    def is_set(self) -> bool:
        """Whether a look is asked for."""
        return self._memory[0] != 0

    def is_overdue(self) -> bool:
        """Whether an overdue stop has set the second byte."""
        return self._memory[_OVERDUE] != 0

    def close(self) -> None:
        """Unmap it and close its file."""
        del self._anchor
        self._memory.close()
        os.close(self.fd)
