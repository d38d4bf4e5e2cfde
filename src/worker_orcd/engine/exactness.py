"""The start-up self-check of `--exact`: are streams byte-identical, whatever runs beside them?

The answer depends on model, build and device together, so it is measured. A few synthetic prompts are computed alone,
in chunks beside each other, and resumed from the middle. Two things are compared bit for bit: the results of each
operation in the model's graph (`_inspect`), which shows where a difference arises and why, and the model's final scores
(`_compare_scores`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from worker_orcd.engine.model import AbortMode, Batch, Computes, Model, ModelLoadError, Operation, Outcome

_PROMPT_LENGTHS = (200, 9, 70, 33, 5, 64, 17, 120, 3, 12)
"""Tokens of each prompt. The first prompt takes several steps. The number of prompts is above eight, because some
kernels switch algorithms at eight rows, others at 64."""
_INSPECTED_LENGTHS = (70, 9, 33, 5, 64, 17)
"""Tokens of each prompt in an inspection: fewer are enough, because every row that differs shows."""
_DECODED = 4
_CHUNK = 24
_CELLS, _ROWS = 256, 256
"""Cells of a sequence, and rows of a step, in an inspection."""
_ROUTER = "ffn_gate_inp"
"""GGUF's name for the weights that choose experts."""


@dataclass(slots=True)
class _Probe:
    """One synthetic prompt, and the results computed for it."""

    sequence: int
    tokens: list[int]
    computed: int = 0
    scores: list[bytes] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether all its tokens are computed."""
        return len(self.scores) >= _DECODED


def require_exactness(model: Model, path: str, progressed: Callable[[], None]) -> None:
    """Raise ModelLoadError if streams are not byte-identical. Calls `progressed` after each step."""
    reason = why_inexact(model, progressed)
    if reason is not None:
        raise ModelLoadError(f"{path}: --exact refused: {reason}")


def why_inexact(model: Model, progressed: Callable[[], None] = lambda: None) -> str | None:
    """The reason why streams depend on what runs beside them; None if they do not. Leaves every sequence empty."""
    operation = _inspect(model, progressed)
    if operation is not None:
        return _explanation(operation)
    if not _compare_scores(model, progressed):
        return (
            "the scores of a prompt depend on what is computed beside it with this model, build and device "
            "(found by the self-check)"
        )
    return None


def _explanation(operation: Operation) -> str:
    if not operation.weight_type:
        return f"the results of {operation.kind} ({operation.name}) depend on what is computed beside it"
    kind = f"{operation.weight_type} weights"
    if _ROUTER in operation.name:
        kind = f"a mixture of experts whose router has {kind}"
    return (
        f"the model has {kind} ({operation.name}), and products with these depend on how many rows are computed "
        "together"
    )


def _inspect(model: Model, progressed: Callable[[], None]) -> Operation | None:
    """The first operation whose results for a row depend on whether the row runs alone, beside others or resumed."""
    sequences = min(len(_INSPECTED_LENGTHS), model.facts.sequences)
    cells = min(_CELLS, model.facts.cells_per_job)
    prompts = _prompts(model, _INSPECTED_LENGTHS[:sequences], cells)
    together = [_Probe(number, prompt) for number, prompt in enumerate(prompts)]
    with model.inspection(sequences, cells, _ROWS) as inspection:
        _compute_each([_Probe(0, list(probe.tokens)) for probe in together], inspection, progressed)
        alone = inspection.recorded()
        _compute_together(together, inspection, progressed)
        for probe in together:
            inspection.trim(probe.sequence, 0)
        _compute_together(_resumed(together), inspection, progressed)
        beside = inspection.recorded()
    if not alone:
        raise RuntimeError("the self-check recorded no operation")
    # One side may lack an operation: some models' graphs depend on the number of rows.
    differing = [operation for operation, rows in alone.items() if not beside.get(operation, rows) <= rows]
    # The norms of a layer share one name, and the first norm runs before the operation that makes the second differ.
    return min(differing, key=lambda operation: operation.kind.endswith("NORM"), default=None)


def _compare_scores(model: Model, progressed: Callable[[], None]) -> bool:
    """Whether prompts have the same scores alone, beside each other and resumed."""
    lengths = _PROMPT_LENGTHS[: model.facts.sequences]
    together = [
        _Probe(number, prompt)
        for number, prompt in enumerate(_prompts(model, lengths, model.facts.cells_per_job))
    ]
    alone = [_Probe(0, list(probe.tokens)) for probe in together]
    try:
        _compute_each(alone, model, progressed)
        _compute_together(together, model, progressed)
        requeues = _resumed(together)
        for probe in requeues:
            model.trim(probe.sequence, 0)
        _compute_together(requeues, model, progressed)
    finally:
        for sequence in range(model.sequence_ids):
            model.trim(sequence, 0)
    return all(
        first.scores == second.scores and first.scores[-1] == third.scores[-1]
        for first, second, third in zip(alone, together, requeues, strict=True)
    )


def _compute_each(probes: list[_Probe], model: Computes, progressed: Callable[[], None]) -> None:
    """Compute the prompts one after the other, each in one step."""
    for probe in probes:
        while not probe.done:
            _step(model, [probe], len(probe.tokens))
            progressed()
        model.trim(probe.sequence, 0)


def _compute_together(probes: list[_Probe], model: Computes, progressed: Callable[[], None]) -> None:
    """Compute the prompts in the same steps, in chunks."""
    while unfinished := [probe for probe in probes if not probe.done]:
        _step(model, unfinished, _CHUNK)
        progressed()


def _resumed(finished: list[_Probe]) -> list[_Probe]:
    """Probes whose prompts are finished prompts with their generated tokens, except the last two."""
    return [_Probe(probe.sequence, probe.tokens[:-1], scores=[b""] * (_DECODED - 1)) for probe in finished]


def _prompts(model: Model, lengths: tuple[int, ...], cells: int) -> Iterator[list[int]]:
    """Prompts of these lengths (or shorter, if `cells` are fewer), of tokens from all over the vocabulary."""
    state = 1
    for length in lengths:
        tokens = []
        for _ in range(min(length, cells - _DECODED - 1)):
            state = (state * 48271) % 0x7FFFFFFF
            tokens.append(state % model.facts.vocab_size)
        yield tokens


def _step(model: Computes, probes: list[_Probe], chunk: int) -> None:
    """Compute the next rows of each probe. A complete prompt gets its scores, and the best one as next token."""
    batch = Batch([], [], [], [])
    last_row: dict[int, int] = {}
    for index, probe in enumerate(probes):
        end = min(len(probe.tokens), probe.computed + chunk)
        batch.tokens += probe.tokens[probe.computed : end]
        batch.positions += range(probe.computed, end)
        batch.sequences += [probe.sequence] * (end - probe.computed)
        batch.wanted += [False] * (end - probe.computed)
        probe.computed = end
        if end == len(probe.tokens):
            batch.wanted[-1] = True
            last_row[index] = len(batch.wanted) - 1
    if model.decode(batch, abort_mode=AbortMode.NONE) is not Outcome.DONE:
        raise RuntimeError("the self-check's step could not be computed")
    for index, row in last_row.items():
        scores = model.logits(row)
        probes[index].scores.append(scores)
        probes[index].tokens.append(int(np.frombuffer(scores, np.float32).argmax()))
