"""Encoders behind the `Model` interface: a whole prompt is computed at once, and nothing is kept of it.

The engine's loop computes prompts in pieces into KV cells, which an encoder does not have. So a prompt's rows wait
here until the last one arrives, and count as cells meanwhile. Steps, stops, audit and requeueing then work as for other
models.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from worker_orcd.engine.bindings import bindings
from worker_orcd.engine.generative import Memoryless
from worker_orcd.engine.llama import LlamaModel
from worker_orcd.engine.model import ATTENTION, AbortMode, Batch, Memory, Model, ModelLoadError, Outcome
from worker_orcd.engine.pooling import Pool, Vector
from worker_orcd.engine.row_buffers import OUTCOMES
from worker_orcd.engine.weights import Weights
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, Pooling

lib = bindings()
_LONG_ROWS = 64
"""A computation of fewer rows is too short for an engine to be taken for stuck."""


class EncoderModel(LlamaModel):
    """One encoder with one context. Pools the vectors of all rows of a prompt."""

    def __init__(
        self, load: Load, interrupt: InterruptByte, progress: Callable[[float], None], weights: Weights
    ) -> None:
        """Create a context for these weights. `progress` is also called during a long computation.

        Raises:
            ModelLoadError: there is no pooling type, or no room for a context.
        """
        if weights.pooling == "none":
            raise ModelLoadError(
                f"model file {load.model_path}: is an encoder whose metadata do not name a pooling type "
                f"(architecture {weights.architecture}); --pooling is required"
            )

        def asked(address: int) -> bool:
            progress(100.0)
            return ctypes.c_char.from_address(address).value != b"\0"

        self._reporting_abort = lib.ggml_abort_callback(asked)
        """Also reports progress, between two nodes of the graph: a long prompt takes minutes, in one step, and without
        this an engine that computes would be taken for stuck."""
        self._waiting: dict[int, list[int]] = {}
        """By sequence id: the tokens of the sequence's prompt so far."""
        self._vectors: dict[int, Vector] = {}
        """By row of the last step: the vectors of the prompts that ended there."""
        super().__init__(load, interrupt, progress, weights)

    @property
    def generates(self) -> bool:
        """False: encoders generate no text."""
        return False

    @property
    def pooling(self) -> Pooling:
        """`last`: the loop reads a prompt's vector at its last row."""
        return "last"

    @property
    def embeds_behind_prefix(self) -> bool:
        """False: all rows of a prompt are computed together."""
        return False

    def embedding(self, row: int) -> Vector:
        """The vector of the prompt that ended with this row."""
        return self._vectors[row]

    def logits(self, row: int) -> bytes:
        """Not supported: an encoder has no logits."""
        raise NotImplementedError

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Keep the rows, and compute the prompts that they complete."""
        for token, sequence in zip(batch.tokens, batch.sequences, strict=True):
            self._waiting.setdefault(sequence, []).append(token)
        ends = [row for row, wanted in enumerate(batch.wanted) if wanted]
        self._vectors = {}
        for group in self._groups([batch.sequences[row] for row in ends]):
            outcome = self._encode(group, abort_mode)
            if outcome is not Outcome.DONE:
                return outcome
            vectors = self._pooled(group)
            self._vectors |= {row: vectors[s] for row in ends if (s := batch.sequences[row]) in vectors}
        return Outcome.DONE

    def _groups(self, sequences: list[int]) -> list[list[int]]:
        """Sequences that are computed together, because they fit into one micro-batch."""
        groups: list[list[int]] = []
        room = 0
        for sequence in sequences:
            rows = len(self._waiting[sequence])
            if rows > room:
                groups.append([])
                room = self._rows.count
            groups[-1].append(sequence)
            room -= rows
        return groups

    def _encode(self, sequences: list[int], abort_mode: AbortMode) -> Outcome:
        batch = Batch([], [], [], [], embeds=True)
        for sequence in sequences:
            tokens = self._waiting[sequence]
            batch.tokens += tokens
            batch.positions += range(len(tokens))
            batch.sequences += [sequence] * len(tokens)
        batch.wanted = [True] * len(batch.tokens)
        lib.llama_set_embeddings(self._context, True)
        asked = self._abort if len(batch.tokens) < _LONG_ROWS else self._reporting_abort
        lib.llama_set_abort_callback(self._context, asked, self._watched[abort_mode])
        code = lib.llama_encode(self._context, self._rows.fill(batch))
        return OUTCOMES.get(code, Outcome.FAILED)

    def _pooled(self, sequences: list[int]) -> dict[int, Vector]:
        """The vector of each sequence in the group that was just computed."""
        found, row = {}, 0
        for sequence in sequences:
            length = len(self._waiting[sequence])
            pool = Pool(self._weights.pooling, length, 0)
            for position in filter(pool.wants, range(length)):
                pool.add(position, super().embedding(row + position))
            row += length
            found[sequence] = pool.sum.astype(np.float32)
        return found

    # Memory: the rows that wait.

    def trim(self, sequence: int, length: int) -> bool:
        """Drop the rows after the first `length`."""
        del self._waiting.get(sequence, [])[length:]
        return True

    def clear(self) -> None:
        """Drop all rows."""
        self._waiting.clear()

    def move(self, source: int, target: int) -> bool:
        """Move a sequence's rows to another id."""
        self._waiting[target] = self._waiting.pop(source, [])
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a sequence's first rows to another id."""
        self._waiting[target] = self._waiting[source][:length]

    def cells(self, sequence: int) -> int:
        """Number of rows that wait."""
        return len(self._waiting.get(sequence, ()))

    def _open_memory(self) -> None:
        """None: an encoder has no memory."""

    def _read_memory_kind(self, path: str) -> Memory:  # noqa: ARG002  # Waiting rows behave like attention.
        return ATTENTION

    def _sequence_ids(self, load: Load) -> int:
        """One id for each run: an encoder keeps nothing warm."""
        return load.parallel

    def _context_params(self, load: Load) -> Any:
        """A micro-batch must hold the longest prompt, because all its rows attend to each other."""
        params = super()._context_params(load)
        longest = min(load.context_length, lib.llama_model_n_ctx_train(self._model))
        params.n_batch = params.n_ubatch = longest
        params.kv_unified = True
        params.embeddings = True
        return params


def load_model(load: Load, interrupt: InterruptByte, progress: Callable[[float], None]) -> Model:
    """Load a model that generates text, or an encoder if `load` allows embeddings.

    Raises:
        ModelLoadError: the model is neither, or cannot be loaded.
    """
    weights = Weights(lib, load, progress)
    try:
        return LlamaModel(load, interrupt, progress, weights)
    except Memoryless:
        if not load.embeddings:
            raise
    return EncoderModel(load, interrupt, progress, weights)
