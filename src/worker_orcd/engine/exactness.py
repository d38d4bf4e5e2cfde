"""The start-up self-check: are streams byte-identical, whatever runs beside them?

Whether they are is a property of model, build and device together, so it is measured, not assumed: a few synthetic
prompts are computed alone, in chunks beside each other, and resumed from the middle. Two things are compared bit for
bit: the results of each operation in the model's graph (`_inspect`), which shows every difference where it arises and
names its cause, and the scores that the model itself gives (`_compare_scores`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from worker_orcd.engine.model import AbortMode, Batch, Computes, Model, ModelLoadError, Operation, Outcome

_PROMPT_LENGTHS = (200, 9, 70, 33, 5, 64, 17, 120, 3, 12)
"""The first one takes several steps. More than eight together: some kernels switch at eight rows, others at 64."""
_INSPECTED_LENGTHS = (70, 9, 33, 5, 64, 17)
"""Fewer: each row that is computed differently shows."""
_DECODED = 4
_CHUNK = 24
_CELLS, _ROWS = 256, 256
"""Of a sequence, and of a step, in an inspection."""
_ROUTER = "ffn_gate_inp"
"""What GGUF calls the weights that choose experts."""


@dataclass(slots=True)
class _Probe:
    """One synthetic prompt, and what is computed for it."""

    sequence: int
    tokens: list[int]
    computed: int = 0
    scores: list[bytes] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether all its tokens are there."""
        return len(self.scores) >= _DECODED


def require_exactness(model: Model, path: str, progressed: Callable[[], None]) -> None:
    """Raise ModelLoadError if streams are not byte-identical here. `progressed` is called after each step."""
    reason = why_inexact(model, progressed)
    if reason is not None:
        raise ModelLoadError(f"{path}: --exact refused: {reason}")


def why_inexact(model: Model, progressed: Callable[[], None] = lambda: None) -> str | None:
    """Why streams depend on what runs beside them, in a clause; None if they do not. Leaves every sequence empty."""
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
    """The first operation whose results for a row differ alone, beside other rows, or when resumed."""
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
    # An operation may be missing on one side: some models' graphs differ with the number of rows.
    differing = [operation for operation, rows in alone.items() if not beside.get(operation, rows) <= rows]
    # Norms of one layer share a name, and the first of them comes before what makes the second differ.
    return min(differing, key=lambda operation: operation.kind.endswith("NORM"), default=None)


def _compare_scores(model: Model, progressed: Callable[[], None]) -> bool:
    """Whether the scores of prompts are the same alone, beside each other and resumed."""
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
    """Compute one after the other, each prompt in one step."""
    for probe in probes:
        while not probe.done:
            _step(model, [probe], len(probe.tokens))
            progressed()
        model.trim(probe.sequence, 0)


def _compute_together(probes: list[_Probe], model: Computes, progressed: Callable[[], None]) -> None:
    """Compute all in the same steps, prompts in chunks."""
    while unfinished := [probe for probe in probes if not probe.done]:
        _step(model, unfinished, _CHUNK)
        progressed()


def _resumed(finished: list[_Probe]) -> list[_Probe]:
    """Prompts that consist of finished ones and their tokens, but for the last two tokens."""
    return [_Probe(probe.sequence, probe.tokens[:-1], scores=[b""] * (_DECODED - 1)) for probe in finished]


def _prompts(model: Model, lengths: tuple[int, ...], cells: int) -> Iterator[list[int]]:
    """Prompts of these lengths, or of what fits into so many cells, of tokens all over the vocabulary."""
    state = 1
    for length in lengths:
        tokens = []
        for _ in range(min(length, cells - _DECODED - 1)):
            state = (state * 48271) % 0x7FFFFFFF
            tokens.append(state % model.facts.vocab_size)
        yield tokens


def _step(model: Computes, probes: list[_Probe], chunk: int) -> None:
    """Compute the next rows of each; a prompt that is complete gets its scores, and their highest as next token."""
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
