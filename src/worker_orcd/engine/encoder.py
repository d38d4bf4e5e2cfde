"""Encoders behind the `Model` interface: a whole prompt is computed at once, and nothing is remembered of it.

The loop computes prompts row by row into cells, and an encoder has none. So rows of a prompt wait here until its last
one comes, and count as cells meanwhile: steps, stops, audit and requeueing are those of all models.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from worker_orcd.engine.bindings import bindings
from worker_orcd.engine.generative import Memoryless
from worker_orcd.engine.llama import OUTCOMES, LlamaModel
from worker_orcd.engine.model import ATTENTION, AbortMode, Batch, Memory, Model, ModelLoadError, Outcome
from worker_orcd.engine.pooling import Pool, Vector
from worker_orcd.engine.weights import Weights
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, Pooling

lib = bindings()


class EncoderModel(LlamaModel):
    """One encoder, one context. Its vectors are pooled here, from all rows of a prompt."""

    def __init__(
        self, load: Load, interrupt: InterruptByte, progress: Callable[[float], None], weights: Weights
    ) -> None:
        """Use these weights. Raises `ModelLoadError`."""
        if weights.pooling == "none":
            raise ModelLoadError(
                f"model file {load.model_path}: is an encoder that does not say how its tokens are pooled "
                f"(architecture {weights.architecture}); --pooling is required"
            )
        self._waiting: dict[int, list[int]] = {}
        """By sequence id: the tokens of its prompt so far."""
        self._vectors: dict[int, Vector] = {}
        """By row of the last step: the vectors of the prompts that ended there."""
        super().__init__(load, interrupt, progress, weights)

    @property
    def generates(self) -> bool:
        """No encoder does."""
        return False

    @property
    def pooling(self) -> Pooling:
        """The vector of a prompt is there with its last row."""
        return "last"

    @property
    def embeds_behind_prefix(self) -> bool:
        """All rows are computed together."""
        return False

    def embedding(self, row: int) -> Vector:
        """The vector of the prompt that ended with this row."""
        return self._vectors[row]

    def logits(self, row: int) -> bytes:
        """An encoder has none."""
        raise NotImplementedError

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Keep the rows, and compute the prompts that are whole with them."""
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
        """Sequences that are computed together: as many as one micro-batch has rows for."""
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
        lib.llama_set_abort_callback(self._context, self._abort, self._watched[abort_mode])
        code = lib.llama_encode(self._context, self._rows.fill(batch))
        return OUTCOMES.get(code, Outcome.FAILED)

    def _pooled(self, sequences: list[int]) -> dict[int, Vector]:
        """The vector of each sequence of the group that was just computed."""
        found, row = {}, 0
        for sequence in sequences:
            length = len(self._waiting[sequence])
            pool = Pool(self._weights.pooling, length, 0)
            for position in filter(pool.wants, range(length)):
                pool.add(position, super().embedding(row + position))
            row += length
            found[sequence] = pool.sum.astype(np.float32)
        return found

    # What counts as memory.

    def trim(self, sequence: int, length: int) -> bool:
        """Forget the rows behind."""
        del self._waiting.get(sequence, [])[length:]
        return True

    def clear(self) -> None:
        """Forget all rows."""
        self._waiting.clear()

    def move(self, source: int, target: int) -> bool:
        """Give rows another id."""
        self._waiting[target] = self._waiting.pop(source, [])
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        """Take over rows."""
        self._waiting[target] = self._waiting[source][:length]

    def cells(self, sequence: int) -> int:
        """Rows that wait."""
        return len(self._waiting.get(sequence, ()))

    def _open_memory(self) -> None:
        """There is none."""

    def _read_memory_kind(self, path: str) -> Memory:  # noqa: ARG002  # The rows that wait here.
        return ATTENTION

    def _sequence_ids(self, load: Load) -> int:
        """Nothing stays warm."""
        return load.parallel

    def _context_params(self, load: Load) -> Any:
        """A micro-batch has room for the longest prompt, all of whose rows attend to each other."""
        params = super()._context_params(load)
        longest = min(load.context_length, lib.llama_model_n_ctx_train(self._model))
        params.n_batch = params.n_ubatch = longest
        params.kv_unified = True
        params.embeddings = True
        return params


def load_model(load: Load, interrupt: InterruptByte, progress: Callable[[float], None]) -> Model:
    """Load a model that generates text, or, where `load` allows it, an encoder.

    Raises:
        ModelLoadError: it is neither, or cannot be loaded.
    """
    weights = Weights(lib, load, progress)
    try:
        return LlamaModel(load, interrupt, progress, weights)
    except Memoryless:
        if not load.embeddings:
            raise
    return EncoderModel(load, interrupt, progress, weights)
