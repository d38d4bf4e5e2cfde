"""What the loop does with each kind of memory beside aborts: preemption, stops, moves, and cells that neighbours
reuse."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.models.engine import TinyEngine, run_of, some_prompt
from tests.models.histories import History, check_whole, compare
from tests.models.matrix import CASES, Case
from tests.tiny import TinyModels
from worker_orcd.protocol.messages import Stop

WINDOWED = [case for case in CASES if case.name in ("gemma2", "gemma3", "gemma3n", "gpt-oss", "cohere2")]
"""Llama 4 has a window of 8,192 tokens whatever its file says."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Frees models."""
    with ExitStack() as stack:
        yield stack


def check_logits(case: Case, engine: TinyEngine, alone: TinyEngine, history: History) -> None:
    """Every token was drawn from the logits that its run has alone."""
    distances, wrong = compare(engine, alone, history, case.rounding)
    assert wrong == set(), max(distances)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs_that_are_preempted_and_stopped_leave_the_others_as_they_are(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """Cells do not suffice for all runs: the youngest is requeued with its tokens so far, and one is stopped in its
    prefill."""
    path = tiny_models.path(case.name, "F32", **case.metadata)
    engine = stack.enter_context(closing(TinyEngine(path, parallel=4, cells=256)))
    alone = stack.enter_context(closing(TinyEngine(path, parallel=1, cells=256)))
    chance = random.Random(len(case.name))
    vocabulary = engine.model.facts.vocab_size
    history = History({n: run_of(n, some_prompt(chance, 20, vocabulary), max_tokens=110) for n in (1, 2, 3)})
    history.runs[4] = run_of(4, some_prompt(chance, 120, vocabulary), max_tokens=2)
    history.stopped = {4}
    engine.post(history.runs[4], *(history.runs[n] for n in (1, 2, 3)))
    engine.loop.turn()
    engine.post(Stop(4))
    engine.finish()
    assert any(step.preempted for step in engine.steps)
    check_whole(engine, history)
    check_logits(case, engine, alone, history)


@pytest.mark.parametrize("case", WINDOWED, ids=str)
def test_cells_that_a_window_has_left_may_go_to_a_neighbour(
    case: Case, tiny_models: TinyModels, stack: ExitStack
) -> None:
    """A short run that was placed first ends, and the next one takes cells that the long run does not look at any more.

    No audit may find fault with that: it had a whole prompt computed again.
    """
    path = tiny_models.path(case.name, "F32", **case.metadata)
    engine = stack.enter_context(closing(TinyEngine(path, parallel=4, cells=512)))
    alone = stack.enter_context(closing(TinyEngine(path, parallel=1, cells=512)))
    chance = random.Random(2)
    vocabulary = engine.model.facts.vocab_size
    lengths = {1: 5, 2: 120, 3: 100, 4: 30}
    history = History(
        {
            n: run_of(n, some_prompt(chance, length, vocabulary), max_tokens=40)
            for n, length in lengths.items()
        }
    )
    history.stopped = {1}
    engine.post(history.runs[1])
    engine.loop.turn()
    engine.post(history.runs[2])
    while not engine.tokens(2):
        engine.loop.turn()
    engine.post(Stop(1), history.runs[3], history.runs[4])
    taken = False
    while engine.loop.turn():
        taken |= engine.model.lowest(1) > 0
    assert taken, "no cell was given to a neighbour"
    check_whole(engine, history)
    check_logits(case, engine, alone, history)


@pytest.mark.parametrize("name", ["mamba", "rwkv7"])
def test_a_run_whose_id_changes_keeps_its_state(name: str, tiny_models: TinyModels, stack: ExitStack) -> None:
    """Recurrent models are faster when ids have no gaps: the last run takes the id of one that has ended, just before
    the next step, which is aborted here."""
    (case,) = (case for case in CASES if case.name == name)
    path = tiny_models.path(case.name, "F32", **case.metadata)
    engine = stack.enter_context(closing(TinyEngine(path, parallel=4, cells=512)))
    alone = stack.enter_context(closing(TinyEngine(path, parallel=1, cells=512)))
    chance = random.Random(3)
    vocabulary = engine.model.facts.vocab_size
    history = History(
        {n: run_of(n, some_prompt(chance, 10, vocabulary), max_tokens=3 * n + 2) for n in (1, 2, 3, 4)}
    )
    engine.post(*history.runs.values())
    while not engine.ends(1):
        engine.loop.turn()
    assert [held > 0 for held in engine.cells_held()] == [False, True, True, True]
    engine.aborts_at_once = True
    engine.loop.turn()
    assert engine.steps[-1].aborted
    assert [held > 0 for held in engine.cells_held()] == [True, True, True, False]
    engine.finish()
    check_whole(engine, history)
    check_logits(case, engine, alone, history)
