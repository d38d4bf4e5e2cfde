"""A sequence that takes another id has its memory there at once: it can be copied, and its old id used again.

Between separate streams llama.cpp only notes a copy and carries it out in the next decode (its `seq_cp`). What was read
of the new id before that was another sequence's, and what was written into the old id took the place of what was to be
copied.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.models.engine import RecordedModel, TinyEngine, some_prompt
from tests.models.matrix import CASES, Case
from tests.tiny import TinyModels
from worker_orcd.engine.model import AbortMode, Batch, Outcome

LENGTHS = (70, 40, 90)
LAST = len(LENGTHS) - 1


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Frees models."""
    with ExitStack() as stack:
        yield stack


def compute(model: RecordedModel, sequence: int, tokens: list[int], start: int = 0) -> bytes:
    """Compute tokens behind the first `start` ones of a sequence. Returns the logits of the last one."""
    wanted = [False] * (len(tokens) - 1) + [True]
    batch = Batch(tokens, list(range(start, start + len(tokens))), [sequence] * len(tokens), wanted)
    assert model.decode(batch, abort_mode=AbortMode.NONE) is Outcome.DONE
    return model.logits(len(tokens) - 1)


def state_of(model: RecordedModel, sequence: int) -> memoryview:
    """A copy of a sequence's whole memory."""
    state = memoryview(bytearray(model.state_bytes(sequence)))
    assert model.write_state(sequence, state) == len(state)
    return state


@pytest.mark.parametrize("case", [case for case in CASES if not case.refused], ids=str)
def test_a_moved_sequence_can_be_copied_and_its_old_id_used_before_the_next_decode(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """For every model that `--exact` accepts: the next token's logits are those of a sequence that was not moved."""
    path = tiny_models.path(case.name, **case.metadata)
    model = stack.enter_context(closing(TinyEngine(path, exact=True, parallel=4, cells=4 * 256))).model
    chance = random.Random(case.name)
    prompts = [some_prompt(chance, length, model.facts.vocab_size) for length in LENGTHS]
    next_token = some_prompt(chance, 1, model.facts.vocab_size)
    compute(model, 0, prompts[LAST])
    undisturbed = compute(model, 0, next_token, LENGTHS[LAST])
    model.trim(0, 0)
    for sequence, prompt in enumerate(prompts):
        compute(model, sequence, prompt)
    other = state_of(model, 1)
    model.trim(0, 0)

    assert model.move(LAST, 0)
    copied = state_of(model, 0)
    assert model.read_state(LAST, other)

    assert compute(model, 0, next_token, LENGTHS[LAST]) == undisturbed
    model.trim(LAST, 0)
    assert model.read_state(LAST, copied)
    assert compute(model, LAST, next_token, LENGTHS[LAST]) == undisturbed
