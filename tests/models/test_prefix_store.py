"""Prefixes out of host memory on each kind of memory: the next engine takes them up, also beside other runs (G13, G15).

Counted: a retry computes one token, whatever the model remembers of a sequence. Checked: each token is drawn from the
logits that its run has alone; with `--exact` they are so in every bit.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.models.engine import TinyEngine, run_of, some_prompt
from tests.models.histories import History, check_whole, compare, compare_exactly
from tests.models.matrix import CASES, Case
from tests.tiny import TinyModels
from worker_orcd.engine.run import Run
from worker_orcd.supervisor.prefix_memory import prefix_memory

PROMPT = 90


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Frees models and files."""
    with ExitStack() as stack:
        yield stack


def computed(engine: TinyEngine, *runs: Run) -> int:
    """Prompt tokens that runs compute, which are given to the engine at once."""
    before = len(engine.steps)
    engine.post(*runs)
    engine.finish()
    return sum(step.prompt_computed for step in engine.steps[before:])


def play(make: Callable[[], TinyEngine]) -> tuple[TinyEngine, History]:
    """A run; then its retry and its continuation in another engine, the latter beside a run that has nothing to reuse.

    Returns:
        The other engine, and what it computed.
    """
    chance = random.Random(PROMPT)
    engine = make()
    vocabulary = engine.model.facts.vocab_size
    prompt = some_prompt(chance, PROMPT, vocabulary)
    assert computed(engine, run_of(1, prompt, cache="a", max_tokens=6)) == PROMPT
    successor = make()
    retry = run_of(1, prompt, cache="a", max_tokens=6)
    assert computed(successor, retry) == 1
    on = [*prompt, *some_prompt(chance, 20, vocabulary)]
    next_turn = run_of(2, on, cache="a", max_tokens=6)
    other = run_of(3, some_prompt(chance, 40, vocabulary), cache="b", max_tokens=6)
    # A state goes on from before the last prompt token, all others from behind it.
    assert computed(successor, next_turn, other) in {20 + 40, 21 + 40}
    return successor, History({1: retry, 2: next_turn, 3: other})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_next_engine_takes_up_what_another_one_computed(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """Every kind of memory."""
    path = tiny_models.path(case.name, "F32", **case.metadata)
    store = prefix_memory(32)
    stack.callback(os.close, store)
    alone = stack.enter_context(closing(TinyEngine(path, parallel=1, cells=512)))
    successor, history = play(
        lambda: stack.enter_context(closing(TinyEngine(path, parallel=4, cells=512, store=store)))
    )
    check_whole(successor, history)
    distances, wrong = compare(successor, alone, history, case.rounding)
    assert wrong == set(), max(distances)


@pytest.mark.parametrize("case", [case for case in CASES if not case.refused], ids=str)
def test_with_exact_what_is_taken_up_is_the_same_in_every_bit(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """For every model that `--exact` accepts."""
    path = tiny_models.path(case.name, **case.metadata)
    store = prefix_memory(32)
    stack.callback(os.close, store)
    alone = stack.enter_context(closing(TinyEngine(path, exact=True, parallel=4, cells=1024)))
    successor, history = play(
        lambda: stack.enter_context(
            closing(TinyEngine(path, exact=True, parallel=4, cells=1024, store=store))
        )
    )
    check_whole(successor, history)
    compared, different = compare_exactly(successor, alone, history)
    assert compared == 18
    assert different == []
