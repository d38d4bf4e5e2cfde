"""The start-up self-check: are streams byte-identical, whatever runs beside them?

Whether they are is a property of model, build and device together, so it is measured, not assumed: the raw scores of
a few synthetic prompts computed alone are compared bit for bit with the same prompts computed in chunks, beside each
other, and carried on from the middle.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from worker_orcd.engine.model import Arming, Batch, Model, ModelLoadError, Outcome

_PROMPT_LENGTHS = (9, 70, 200, 33, 5, 64, 17, 120, 3, 12)
"""More than eight together: some kernels switch at eight rows; 64 and more: others switch there."""
_DECODED = 4
_CHUNK = 24


@dataclass(slots=True)
class _Probe:
    """One synthetic prompt, and what is computed for it."""

    sequence: int
    tokens: list[int]
    computed: int = 0
    scores: list[bytes] = field(default_factory=list)


def require_exactness(model: Model, path: str, progressed: Callable[[], None]) -> None:
    """Raise ModelLoadError if streams are not byte-identical here. `progressed` is called after each step."""
    if not streams_are_exact(model, progressed):
        raise ModelLoadError(
            f"{path}: --exact required, but with this model, build and device streams depend on what runs beside "
            "them (the self-check failed)"
        )


def streams_are_exact(model: Model, progressed: Callable[[], None] = lambda: None) -> bool:
    """Compare. Leaves every sequence empty. Takes a few dozen steps."""
    together = [_Probe(i, prompt) for i, prompt in enumerate(_prompts(model))]
    alone = [_Probe(0, list(probe.tokens)) for probe in together]
    try:
        for probe in alone:
            while len(probe.scores) < _DECODED:
                _step(model, [probe], len(probe.tokens))
                progressed()
            model.trim(probe.sequence, 0)
        while any(len(probe.scores) < _DECODED for probe in together):
            _step(model, [probe for probe in together if len(probe.scores) < _DECODED], _CHUNK)
            progressed()
        carried_on = [
            _Probe(probe.sequence, probe.tokens[:-1], scores=[b""] * (_DECODED - 1)) for probe in together
        ]
        for probe in carried_on:
            model.trim(probe.sequence, 0)
        while any(len(probe.scores) < _DECODED for probe in carried_on):
            _step(model, [probe for probe in carried_on if len(probe.scores) < _DECODED], _CHUNK)
            progressed()
    finally:
        for sequence in range(model.sequence_ids):
            model.trim(sequence, 0)
    return all(
        first.scores == second.scores and first.scores[-1] == third.scores[-1]
        for first, second, third in zip(alone, together, carried_on, strict=True)
    )


def _prompts(model: Model) -> Iterator[list[int]]:
    """Prompts of assorted lengths, as many as fit, of tokens all over the vocabulary."""
    facts = model.facts
    state = 1
    for length in _PROMPT_LENGTHS[: facts.sequences]:
        tokens = []
        for _ in range(min(length, facts.cells_per_job - _DECODED - 1)):
            state = (state * 48271) % 0x7FFFFFFF
            tokens.append(state % facts.vocab_size)
        yield tokens


def _step(model: Model, probes: list[_Probe], chunk: int) -> None:
    """Compute the next rows of each; whoever has all in cells gets its scores, and their highest as next token."""
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
    if model.decode(batch, armed=Arming.NONE) is not Outcome.DONE:
        raise RuntimeError("the self-check's step could not be computed")
    for index, row in last_row.items():
        scores = model.logits(row)
        probes[index].scores.append(scores)
        probes[index].tokens.append(int(np.frombuffer(scores, np.float32).argmax()))
