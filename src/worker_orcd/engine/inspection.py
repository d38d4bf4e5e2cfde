"""Records the results of each operation of llama.cpp's graph, row by row, for the self-check of `--exact`.

Final scores alone hide most differences: they come out of a multiplication that rounds its input to 8 bits. A router
whose last bit depends on the batch, for example, changes the scores of only one token in a hundred.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from worker_orcd.engine.model import AbortMode, Batch, Operation, Outcome
from worker_orcd.engine.row_buffers import RowBuffers

_RECORDED = frozenset(("MUL_MAT", "MUL_MAT_ID", "FLASH_ATTN_EXT", "RMS_NORM", "NORM", "ADD"))
"""Operations whose results have one row (or one for each head) per token, whatever else is in the batch."""
_F32 = 0
_UNNAMED = ("node_", "leaf_")
"""Prefixes of the names that ggml makes for unnamed tensors. They contain the tensor's number in the graph, which
varies."""


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


def _load_ggml(lib: Any) -> Any:
    ggml = ctypes.CDLL(str(Path(lib.__file__).parent / "lib" / "libggml-base.so"))
    tensor = ctypes.c_void_p
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_void_p, [tensor]),
        ("ggml_op_desc", ctypes.c_char_p, [tensor]),
        ("ggml_type_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_nbytes", ctypes.c_size_t, [tensor]),
        ("ggml_nrows", ctypes.c_int64, [tensor]),
        ("ggml_is_contiguous", ctypes.c_bool, [tensor]),
        ("ggml_backend_tensor_get", None, [tensor, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]),
    ):
        getattr(ggml, name).restype, getattr(ggml, name).argtypes = result, arguments
    return ggml


class Recorder:
    """ggml calls it before and after each operation; it keeps a hash of each row of the result."""

    def __init__(self, lib: Any) -> None:
        self.rows: dict[Operation, set[int]] = {}
        self.callback = lib.ggml_backend_sched_eval_callback(self._evaluated)
        self._ggml = _load_ggml(lib)

    def _evaluated(self, tensor: int, ask: bool, _user_data: object) -> bool:
        """ggml's callback. With `ask`, returns whether to record the result; without, the result is ready, and
        returning False would end the decode."""
        operation = self._operation(tensor)
        if ask or operation is None:
            return operation is not None or not ask
        size, rows = self._ggml.ggml_nbytes(tensor), self._ggml.ggml_nrows(tensor)
        if rows:
            values = np.empty((rows, size // rows), np.uint8)
            self._ggml.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, size)
            self.rows.setdefault(operation, set()).update(hash(row.tobytes()) for row in values)
        return True

    def _operation(self, tensor: int) -> Operation | None:
        """The operation that computed the tensor; None if it is not recorded."""
        kind = self._ggml.ggml_op_desc(tensor).decode()
        result = _Tensor.from_address(tensor)
        if kind not in _RECORDED or result.type != _F32 or not self._ggml.ggml_is_contiguous(tensor):
            return None
        if self._ggml.ggml_get_name(tensor) != tensor + _Tensor.name.offset:
            return None  # The fields below would be wrong in another version of ggml.
        source = _Tensor.from_address(result.src[0])
        weights = source.name.decode()
        if kind.startswith("MUL_MAT") and weights.endswith(".weight"):
            return Operation(kind, weights, self._ggml.ggml_type_name(source.type).decode().upper())
        name = result.name.decode()
        return None if name.startswith(_UNNAMED) or kind.startswith("MUL_MAT") else Operation(kind, name)


class GraphInspection:
    """A separate context, in which every operation is recorded."""

    def __init__(self, lib: Any, context: Any, rows: int, vocab_size: int, recorder: Recorder) -> None:
        self._lib = lib
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._rows = RowBuffers(lib, rows)
        self._vocab_size = vocab_size
        self._recorder = recorder

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Compute rows. Not abortable."""
        if abort_mode is not AbortMode.NONE:
            raise ValueError("an inspection is not abortable")
        code = self._lib.llama_decode(self._context, self._rows.fill(batch))
        return Outcome.DONE if code == 0 else Outcome.FAILED

    def logits(self, row: int) -> bytes:
        """The raw scores of a row."""
        return ctypes.string_at(self._lib.llama_get_logits_ith(self._context, row), self._vocab_size * 4)

    def trim(self, sequence: int, length: int) -> bool:
        """Remove the tokens after the first `length`."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def recorded(self) -> dict[Operation, set[int]]:
        """Hashes of the rows computed since the last call. Operations are in the order of their first computation."""
        rows, self._recorder.rows = self._recorder.rows, {}
        return rows
