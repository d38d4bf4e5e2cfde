"""What the limits of `matrix.Case.rounding` are worth: rounding stays below them, and one wrong token is seen (G15).

No step is aborted here. Prompts and steps are the same in each run of a test.
"""

import random
from contextlib import closing

import numpy as np
import pytest

from tests.models.engine import TinyEngine, some_prompt
from tests.models.histories import cut_at_random, distance
from tests.models.matrix import CASES, Case
from tests.tiny import TinyModels

CELLS = 256
COMPARED = 25
"""Tokens of a prompt whose logits are compared."""
LONG, SHORT = (40, 120, 200), (1, 2, 3, 5, 8, 12) * 5
WRONG_BEHIND = 3
"""How many tokens before the last one the wrong one stands."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_that_are_cut_differently_stay_within_the_limit(case: Case, tiny_models: TinyModels) -> None:
    """So what is beyond it beside aborts is no rounding."""
    chance = random.Random(5)
    distances: list[float] = []
    with closing(
        TinyEngine(tiny_models.path(case.name, "F32", **case.metadata), parallel=1, cells=CELLS)
    ) as alone:
        for length in (*LONG, *SHORT):
            tokens = some_prompt(chance, length, alone.model.facts.vocab_size)
            wanted_from = max(0, length - COMPARED)
            at_once = alone.model.alone(tokens, wanted_from)
            for _ in range(2):
                rows = cut_at_random(alone, tokens, wanted_from, chance)
                distances += [distance(row, other) for row, other in zip(rows, at_once, strict=True)]
    print(f"{case}: {len(distances)} tokens, farthest {max(distances):.1e} without an abort")
    assert max(distances) <= case.rounding


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_wrong_token_before_is_beyond_the_limit(case: Case, tiny_models: TinyModels) -> None:
    """In most prompts: a single cell or step of a state that is wrong moves the logits farther than rounding does."""
    chance = random.Random(6)
    distances: list[float] = []
    with closing(
        TinyEngine(tiny_models.path(case.name, "F32", **case.metadata), parallel=1, cells=CELLS)
    ) as alone:
        vocabulary = alone.model.facts.vocab_size
        for length in (12, 30, 30, 60, 60):
            tokens = some_prompt(chance, length, vocabulary)
            (right,) = alone.model.alone(tokens, length - 1)
            tokens[-1 - WRONG_BEHIND] = (tokens[-1 - WRONG_BEHIND] + vocabulary // 2) % vocabulary
            (wrong,) = alone.model.alone(tokens, length - 1)
            distances.append(distance(wrong, right))
    print(f"{case}: {min(distances):.1e} to {max(distances):.1e} by one wrong token")
    assert np.median(distances) > case.rounding
