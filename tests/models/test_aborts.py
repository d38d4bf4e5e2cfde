"""Aborted steps at random moments leave no trace, for each kind of memory (G6, G15).

`MODEL_ABORTS` is how many steps are aborted for each model (`make models`: 200).
"""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.models.engine import TinyEngine, run_of, some_prompt
from tests.models.histories import History, check_whole, compare, compare_exactly, play
from tests.models.matrix import CASES, Case
from tests.tiny import TinyModels
from worker_orcd.protocol.messages import Stop
from worker_orcd.supervisor.prefix_memory import prefix_memory

ABORTS = int(os.environ.get("MODEL_ABORTS", "12"))
SEQUENCES = 6
CELLS = 1024


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Frees models."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_beside_aborted_steps_are_those_of_the_run_alone(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """Up to six runs at a time come, end and are stopped; steps are aborted wherever that hits them."""
    path = tiny_models.path(case.name, "F32", **case.metadata)
    engine = stack.enter_context(closing(TinyEngine(path, parallel=SEQUENCES, cells=CELLS)))
    alone = stack.enter_context(closing(TinyEngine(path, parallel=1, cells=CELLS)))
    assert engine.model.memory.kind == case.memory
    history = play(engine, ABORTS, seed=len(case.name))
    check_whole(engine, history)
    distances, wrong = compare(engine, alone, history, case.rounding)
    print(f"{case}: {history.aborts} aborts, {len(distances)} tokens, farthest {max(distances):.1e}")
    assert wrong == set()


@pytest.mark.parametrize("case", [case for case in CASES if case.memory in ("recurrent", "hybrid")], ids=str)
def test_a_run_that_comes_after_an_abort_begins_with_an_empty_state(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """Not with the state of a run whose slot the aborted step passed over. One of three runs has left a free slot
    in the middle; the next step moves the last run there, and is aborted before it has zeroed the slot that is free
    now."""
    path = tiny_models.path(case.name, "F32", **case.metadata)
    engine = stack.enter_context(closing(TinyEngine(path, parallel=4, cells=CELLS)))
    alone = stack.enter_context(closing(TinyEngine(path, parallel=1, cells=CELLS)))
    chance = random.Random(1)
    vocabulary = engine.model.facts.vocab_size
    runs = {n: run_of(n, some_prompt(chance, 12, vocabulary), max_tokens=30) for n in (1, 2, 3)}
    runs[4] = run_of(4, some_prompt(chance, 1, vocabulary), max_tokens=4)
    engine.post(runs[1], runs[2], runs[3])
    while not all(engine.tokens(n) for n in (1, 2, 3)):
        engine.loop.turn()
    engine.post(Stop(2))
    engine.aborts_at_once = True
    engine.loop.turn()
    assert engine.steps[-1].aborted
    engine.aborts_at_once = False
    engine.post(runs[4])
    engine.finish()
    _, wrong = compare(engine, alone, History(runs), case.rounding)
    assert wrong == set()


@pytest.mark.parametrize("case", [case for case in CASES if not case.refused], ids=str)
def test_exact_logits_beside_aborted_steps_are_identical_to_the_run_alone(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """With `--exact` not one bit differs, whatever is copied to host memory and back."""
    path = tiny_models.path(case.name, **case.metadata)
    store = prefix_memory(64)
    stack.callback(os.close, store)
    each = CELLS // 4
    engine = stack.enter_context(
        closing(TinyEngine(path, exact=True, parallel=SEQUENCES, cells=SEQUENCES * each, store=store))
    )
    alone = stack.enter_context(closing(TinyEngine(path, exact=True, parallel=1, cells=each)))
    history = play(engine, ABORTS, seed=len(case.name) + 100)
    check_whole(engine, history)
    compared, different = compare_exactly(engine, alone, history)
    print(f"{case}: {history.aborts} aborts, {compared} tokens, {len(different)} runs differ with --exact")
    assert different == []
