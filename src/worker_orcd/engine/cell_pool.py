"""The KV cells of one llama.cpp context: lengths, copies and removals, by sequence id."""

import ctypes
from typing import Any

_WHOLE = 0
"""No flag: a sequence's whole memory."""
PARTIAL = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: only the part of a sequence's memory that cannot be trimmed."""


class CellPool:
    """The memory of a context. Not safe while the context computes."""

    def __init__(self, lib: Any, context: Any, memory: Any) -> None:
        self._lib = lib
        self._context = context
        self._memory = memory

    def cells(self, sequence: int) -> int:
        """Tokens up to the highest position of the sequence in llama.cpp's memory.

        The lowest position is no help: a recurrent state has only its last position, and llama.cpp reuses the cells
        that a sliding window has left behind.
        """
        return int(self._lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def trim(self, sequence: int, length: int) -> bool:
        """Remove the tokens after the first `length`. A recurrent state cannot be shortened, only removed."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def clear(self) -> None:
        """Reset the cells, and the search heads, which may be wrong after a decode that found no room."""
        self._lib.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int, length: int = -1) -> None:
        """Share the first cells of a sequence, or all. Only llama.cpp's list of each cell's owners changes."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1 if length < 0 else 0, length)

    def state_bytes(self, sequence: int, flags: int = _WHOLE) -> int:
        """As reported by llama.cpp."""
        return int(self._lib.llama_state_seq_get_size_ext(self._context, sequence, flags))

    def write_state(self, sequence: int, into: memoryview, flags: int = _WHOLE) -> int:
        """Copy a sequence's cells and states into a buffer. Returns the number of bytes written."""
        native = (ctypes.c_uint8 * len(into)).from_buffer(into)
        return int(self._lib.llama_state_seq_get_data_ext(self._context, native, len(into), sequence, flags))

    def read_state(self, sequence: int, state: memoryview, flags: int = _WHOLE) -> bool:
        """Load a sequence from a buffer into free cells. llama.cpp returns the number of bytes read, 0 for a
        failure."""
        native = (ctypes.c_uint8 * len(state)).from_buffer(state)
        read = self._lib.llama_state_seq_set_data_ext(self._context, native, len(state), sequence, flags)
        return bool(read == len(state))


def moved(sequence: int, source: CellPool, target: CellPool, buffer: memoryview) -> bool:
    """Move a sequence to another pool of the same model, through a buffer that is large enough for its state. Returns
    False if that failed; then the sequence is still in its old pool alone."""
    length = source.cells(sequence)
    if length > 0:
        size = source.state_bytes(sequence)
        state = buffer[:size]
        whole = len(state) == size == source.write_state(sequence, state)
        whole = whole and target.read_state(sequence, state)
        if not whole or target.cells(sequence) != length:
            target.trim(sequence, 0)
            return False
    source.trim(sequence, 0)
    return True
