"""Recurrent memory, which cannot be trimmed: an aborted or failed step leaves no trace in it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes import HandLoop, run_message
from worker_orcd.engine.model import Outcome
from worker_orcd.protocol.messages import Stop

MakeLoop = Callable[..., HandLoop]


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    """Make loops with recurrent memory; they are closed afterwards."""
    made: list[HandLoop] = []

    def make(**given: Any) -> HandLoop:
        made.append(HandLoop(**{"recurrent": True, **given}))
        return made[-1]

    yield make
    for loop in made:
        loop.close()


def alone(make_loop: MakeLoop, run: int, prompt: str = "", **given: Any) -> list[int]:
    """The tokens of a run that has the engine to itself."""
    loop = make_loop()
    loop.post(run_message(run, prompt, **given))
    loop.finish()
    return loop.tokens(run)


def until_decoding(loop: HandLoop, *runs: int) -> None:
    """Turn until each of these runs has a token."""
    while not all(loop.tokens(run) for run in runs):
        loop.turn()


@pytest.mark.parametrize("exact", [False, True])
def test_aborted_steps_change_no_runs_tokens(make_loop: MakeLoop, exact: bool) -> None:
    """Every second step is aborted while prompts are computed and others decode; one run is stopped half-way."""
    loop = make_loop(exact=exact)
    lengths = {1: 300, 2: 5, 3: 150}
    loop.post(*(run_message(n, "p" * length, max_tokens=12) for n, length in lengths.items()))
    loop.post(run_message(4, "p" * 400, max_tokens=12))
    loop.model.decode_ms = 8.0
    loop.model.during_step = loop.byte.set
    loop.turn(9)
    loop.post(Stop(4))
    loop.finish()
    assert sum(step.aborted for step in loop.steps) >= 10
    for n, length in lengths.items():
        assert loop.tokens(n) == alone(make_loop, n, "p" * length, max_tokens=12)
        assert loop.ends(n) == ["length"]
    assert loop.faults == []
    assert loop.cells_held() == [0, 0, 0, 0]


def one_waiting(make_loop: MakeLoop) -> HandLoop:
    """Three long prompts, all begun; the second gets no rows until the third, which is shorter, is computed."""
    loop = make_loop()
    loop.model.prefill_row_ms = 10.0
    loop.post(run_message(1, "p" * 900, max_tokens=4), run_message(2, "p" * 400, max_tokens=4))
    loop.turn(3)
    loop.post(run_message(3, "p" * 100, max_tokens=4))
    loop.turn()
    assert {0, 2} == set(loop.model.steps[-1].batch.sequences)
    assert loop.model.cells(1) > 0
    return loop


def check_all(loop: HandLoop, make_loop: MakeLoop, *without: int) -> None:
    """These runs have the tokens that they have alone."""
    for n, length in {1: 900, 2: 400, 3: 100}.items():
        if n not in without:
            assert loop.tokens(n) == alone(make_loop, n, "p" * length, max_tokens=4)
            assert loop.ends(n) == ["length"]
    assert loop.faults == []


def test_a_run_without_rows_in_the_aborted_step_is_restored_as_well(make_loop: MakeLoop) -> None:
    """The abort changes its state, too."""
    loop = one_waiting(make_loop)
    loop.model.during_step = loop.byte.set
    loop.turn()
    assert loop.steps[-1].aborted
    assert 1 not in loop.model.steps[-1].batch.sequences
    loop.model.during_step = lambda: None
    loop.finish()
    check_all(loop, make_loop)


@pytest.mark.parametrize("computed_before", [True, False])
def test_a_run_that_comes_after_an_abort_begins_with_an_empty_state(
    make_loop: MakeLoop, computed_before: bool
) -> None:
    """Whether or not its sequence held another run's state."""
    loop = make_loop()
    loop.model.decode_ms = 20.0
    loop.post(run_message(1, "p" * 100, max_tokens=9))
    if computed_before:
        until_decoding(loop, 1)
        loop.turn(2)
    loop.model.during_step = loop.byte.set
    loop.turn()
    assert loop.steps[-1].aborted
    loop.model.during_step = lambda: None
    loop.post(*(run_message(n, max_tokens=9) for n in (2, 3, 4)))
    loop.finish()
    for n in (2, 3, 4):
        assert loop.tokens(n) == alone(make_loop, n, max_tokens=9)
    assert loop.tokens(1) == alone(make_loop, 1, "p" * 100, max_tokens=9)


def test_only_what_has_changed_is_saved_again(make_loop: MakeLoop) -> None:
    """A run that waits for rows costs nothing."""
    loop = one_waiting(make_loop)
    loop.model.saves.clear()
    loop.turn()
    assert loop.model.steps[-1].abort_mode
    assert loop.model.saves == [0, 2]


def test_a_backend_that_cannot_abort_steps_saves_nothing(make_loop: MakeLoop) -> None:
    """Nothing ever has to be restored."""
    loop = make_loop()
    loop.model.abortable = False
    loop.post(run_message(1, max_tokens=20))
    loop.finish()
    assert loop.ends(1) == ["length"]
    assert loop.model.saves == []


def test_attention_saves_nothing(make_loop: MakeLoop) -> None:
    """Trimming is enough there."""
    loop = make_loop(recurrent=False)
    loop.post(run_message(1, "p" * 900, max_tokens=4))
    loop.finish()
    assert any(step.abort_mode for step in loop.model.steps)
    assert loop.model.saves == []


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.NO_MEMORY])
@pytest.mark.parametrize("abortable", [True, False])
def test_a_failed_step_ends_its_own_runs_only(make_loop: MakeLoop, outcome: Outcome, abortable: bool) -> None:
    """A run without rows in the step continues: with its saved state, or without one from its first token."""
    loop = one_waiting(make_loop)
    loop.model.abortable = abortable
    loop.model.next_outcome = outcome
    loop.turn()
    assert {end.run for end in loop.steps[-1].ended} == {1, 3}
    assert {end.error_code for end in loop.steps[-1].ended} == {"INTERNAL"}
    loop.finish()
    check_all(loop, make_loop, 1, 3)


def test_a_copy_that_cannot_be_restored_costs_time_and_no_token(make_loop: MakeLoop) -> None:
    """All tokens are computed again."""
    loop = make_loop()
    loop.post(run_message(1, max_tokens=12), run_message(2, "p" * 100, max_tokens=12))
    until_decoding(loop, 1, 2)
    loop.model.decode_ms = 20.0
    loop.turn(3)
    loop.model.restores_fail = True
    loop.model.during_step = loop.byte.set
    loop.turn()
    assert loop.steps[-1].aborted
    assert loop.cells_held() == [0, 0, 0, 0]
    loop.model.during_step = lambda: None
    loop.finish()
    for n, prompt in {1: "", 2: "p" * 100}.items():
        assert loop.tokens(n) == alone(make_loop, n, prompt, max_tokens=12)
        assert loop.ends(n) == ["length"]


def test_a_step_that_finds_no_room_changes_nothing(make_loop: MakeLoop) -> None:
    """The youngest run is requeued; the other one continues with its state, which had not been saved."""
    loop = make_loop()
    loop.model.decode_ms = 2.0
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    until_decoding(loop, 1, 2)
    loop.model.next_outcome = Outcome.NO_ROOM
    loop.turn()
    assert (loop.steps[-1].preempted, loop.steps[-1].ended) == ((2,), ())
    assert loop.cells_held()[0] > 0
    loop.finish()
    assert loop.tokens(1) == alone(make_loop, 1, max_tokens=9)
