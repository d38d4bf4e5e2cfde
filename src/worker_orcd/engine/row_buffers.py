"""The rows of a step as llama.cpp's `llama_batch`, and the outcomes of computing them."""

import ctypes
from typing import Any

import numpy as np

from worker_orcd.engine.model import Batch, Outcome

OUTCOMES = {0: Outcome.DONE, 1: Outcome.NO_ROOM, 2: Outcome.ABORTED, -2: Outcome.NO_MEMORY}
"""Return codes of `llama_decode`; all others are failures."""


class RowBuffers:
    """The arrays of a `llama_batch`, reused for every step. Each row belongs to one sequence."""

    def __init__(self, lib: Any, rows: int) -> None:
        self.count = rows
        self._tokens = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)
        self._counts = np.ones(rows, np.int32)
        self._sequences = np.zeros(rows, np.int32)
        self._wanted = np.zeros(rows, np.int8)
        first = self._sequences.ctypes.data
        self._pointers = np.arange(rows, dtype=np.uint64) * 4 + first
        self._batch = lib.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):
            kind = dict(lib.llama_batch._fields_)[name]
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, kind))

    def fill(self, batch: Batch) -> Any:
        """The `llama_batch` of these rows. Valid until the next call."""
        rows = len(batch.tokens)
        self._tokens[:rows] = batch.tokens
        self._positions[:rows] = batch.positions
        self._sequences[:rows] = batch.sequences
        self._wanted[:rows] = True if batch.embeds else batch.wanted  # llama.cpp embeds all rows or none.
        self._batch.n_tokens = rows
        return self._batch
