"""The interrupt byte: a byte in memory shared by front and engine, and a second byte for overdue stops.

The front sets a byte after its message is in the socket. The engine clears both bytes, and *then* reads its messages.
Before every graph node, ggml checks the byte that may abort the running step, so the step ends within milliseconds. A
protected step checks only the second byte, which the front sets when a stop has waited for nearly its whole time limit.
The bytes only mean "read your messages now": an unnecessary one costs a step, and none can be lost.
"""

import ctypes
import mmap
import os

from worker_orcd.protocol.memory_file import memory_file

_OVERDUE = 2
"""Offset of the second byte."""


class InterruptByte:
    """A memory file that both processes map. Two of its bytes are flags; all others stay zero."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        self._anchor = ctypes.c_char.from_buffer(self._memory)

    @classmethod
    def create(cls) -> "InterruptByte":
        """Make a new one, cleared. Its `fd` is passed to the engine process."""
        return cls(memory_file("worker-orcd-interrupt", mmap.PAGESIZE))

    @property
    def address(self) -> int:
        """Address of the interrupt byte in this process. A NUL follows it."""
        return ctypes.addressof(self._anchor)

    @property
    def overdue_address(self) -> int:
        """Address of the byte for overdue stops."""
        return self.address + _OVERDUE

    def set(self) -> None:
        """Have the engine read its messages now, unless it computes a protected step."""
        self._memory[0] = 1

    def set_overdue(self) -> None:
        """Have the engine read its messages now, even if it computes a protected step."""
        self._memory[0] = self._memory[_OVERDUE] = 1

    def clear(self) -> None:
        """Clear both bytes, before the messages are read."""
        self._memory[0] = self._memory[_OVERDUE] = 0

    def is_set(self) -> bool:
        """Whether the interrupt byte is set."""
        return self._memory[0] != 0

    def is_overdue(self) -> bool:
        """Whether the byte for overdue stops is set."""
        return self._memory[_OVERDUE] != 0

    def close(self) -> None:
        """Unmap the memory and close the file."""
        del self._anchor
        self._memory.close()
        os.close(self.fd)
