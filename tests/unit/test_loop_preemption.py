"""The engine's loop, turned by hand: preempted runs, and runs that come from another engine."""

from typing import Any

import pytest

from tests.fakes import QUICK, HandLoop, MakeLoop, run_message
from tests.loop_runs import LONG, alone, generates, in_decode
from worker_orcd.engine.model import AbortMode, Batch, Outcome
from worker_orcd.engine.scheduler import GROWTH_CELLS
from worker_orcd.protocol.messages import Started, Stop
from worker_orcd.testing.scripted import FIRST_WORD


def test_a_run_continues_after_the_tokens_of_an_earlier_engine(loop: HandLoop, make_loop: MakeLoop) -> None:
    """The remaining tokens are those of an undisturbed run, and no token is reported twice."""
    whole = alone(make_loop, 1, "abc", max_tokens=10)
    loop.post(run_message(1, "abc", max_tokens=10, generated=tuple(whole[:4])))
    loop.finish()
    assert loop.tokens(1) == whole[4:]
    assert loop.ends(1) == ["length"]


@pytest.mark.parametrize("before", range(6))
def test_text_continues_in_the_middle_of_a_character_or_a_stop_sequence(loop: HandLoop, before: int) -> None:
    """The text that the earlier engine held back is held back here; together the texts are complete."""
    tokens = list("👋SToSTOP".encode())
    shown_before = ["", "", "", "", "👋", "👋", "👋"][before]
    loop.post(
        run_message(
            1, generates("👋SToSTOP"), generated=tuple(tokens[:before]), stop=("STOP",), max_tokens=50
        )
    )
    loop.finish()
    assert shown_before + loop.text(1) == "👋STo"
    assert loop.ends(1) == ["stop_sequence"]
    assert loop.tokens(1) == tokens[before:]


def test_progress_of_a_requeued_run_counts_prompt_tokens_only(loop: HandLoop) -> None:
    """The generated tokens are computed again, too, but do not count as prompt."""
    message = run_message(1, LONG, generated=(FIRST_WORD,) * 50, max_tokens=60)
    loop.post(message)
    loop.finish()
    most = max(progress.prompt_processed for step in loop.steps for progress in step.progress)
    assert most == len(message.prompt)
    assert len(loop.tokens(1)) == 10


def test_when_cells_run_out_the_youngest_is_preempted_and_continues_later(make_loop: MakeLoop) -> None:
    """No run fails, the oldest is never preempted, and no reported token changes."""
    room = 3 * (len(run_message(1).prompt) + GROWTH_CELLS)
    cramped = make_loop(cells=room)
    cramped.post(*(run_message(run, max_tokens=100) for run in (3, 1, 2)))
    while not cramped.turn_idle():
        assert sum(cramped.cells_held()) <= room
    assert next(step.preempted for step in cramped.steps if step.preempted) == (3,)
    assert 1 not in {run for step in cramped.steps for run in step.preempted}
    for run in (1, 2, 3):
        assert cramped.tokens(run) == alone(make_loop, run, max_tokens=100)
        preempted = [step.preempted for step in cramped.steps].count((run,))
        assert [started.run for started in cramped.sent if isinstance(started, Started)].count(
            run
        ) == 1 + preempted
    assert cramped.cells_held() == [0, 0, 0, 0]


def test_when_cells_run_out_the_least_urgent_is_preempted(make_loop: MakeLoop) -> None:
    """Not the youngest."""
    cramped = make_loop(cells=3 * (len(run_message(1).prompt) + GROWTH_CELLS))
    cramped.post(*(run_message(run, max_tokens=100, order=-float(run)) for run in (1, 2, 3)))
    while not (preempted := cramped.steps[-1].preempted if cramped.steps else ()):
        cramped.turn()
    assert preempted == (1,)


def test_a_run_that_was_preempted_can_be_stopped_while_it_waits(make_loop: MakeLoop) -> None:
    """At once: it holds nothing, and does not continue."""
    single = make_loop(parallel=1)
    single.post(run_message(1, max_tokens=50, priority=1))
    in_decode(single, 1)
    single.post(run_message(2, max_tokens=50, order=-1.0))
    single.turn()
    single.post(Stop(1))
    single.turn()
    assert [(stop.run, stop.cells_before, stop.cells_after) for stop in single.stopped] == [(1, 0, 0)]
    generated = len(single.tokens(1))
    single.finish()
    assert (len(single.tokens(1)), single.ends(1), single.ends(2)) == (generated, [], ["length"])


@pytest.mark.parametrize("generated", [0, 3], ids=["prefill", "decode"])
def test_a_run_without_a_slot_takes_that_of_a_less_urgent_one(make_loop: MakeLoop, generated: int) -> None:
    """After one step. The preempted run continues from what it computed, and its tokens are those of the run alone."""
    prompt = QUICK + "x" * 600
    single = make_loop(parallel=1)
    single.post(run_message(1, prompt, max_tokens=9, priority=1, cache=""))
    single.turn()
    while len(single.tokens(1)) < generated:
        single.turn()
    before = single.model.cells_in_use()
    single.post(run_message(2, "urgent", order=-1.0, cache=""))
    single.turn()
    assert single.steps[-1].preempted == (1,)
    assert single.model.cells_in_use() > before, "what it computed stays warm"
    single.finish()
    assert single.ends(2) == ["length"]
    assert single.tokens(1) == alone(make_loop, 1, prompt, max_tokens=9)
    computed = sum(step.prompt_computed for step in single.steps)
    assert computed <= len(prompt) + 1 + len(run_message(2, "urgent").prompt)


def test_an_urgent_prompt_is_computed_before_the_rest_of_a_less_urgent_one(loop: HandLoop) -> None:
    """There is a slot for both; runs that decode take part in every step."""
    prompt = QUICK + "x" * 600
    loop.post(run_message(3, max_tokens=99))
    in_decode(loop, 3)
    loop.post(run_message(1, prompt, max_tokens=5, priority=1))
    loop.turn()
    before = len(loop.steps)
    loop.post(run_message(2, prompt, max_tokens=5, order=-1.0))
    in_decode(loop, 2)
    steps = loop.steps[before:]
    assert len(steps) > 2
    assert {progress.run for step in steps for progress in step.progress} == {2}
    assert all(3 in [out.run for out in step.tokens] for step in steps)
    loop.finish()
    assert (loop.ends(1), loop.ends(2)) == (["length"], ["length"])


@pytest.mark.parametrize(
    "other",
    [{"priority": 1, "order": 1.0}, {"priority": 0, "order": 1.0}, {"priority": 2, "order": -1.0}],
)
def test_a_run_without_a_slot_waits_for_one_that_is_as_urgent(
    make_loop: MakeLoop, other: dict[str, Any]
) -> None:
    """Also for a run with a higher priority that has waited so long that it comes first."""
    single = make_loop(parallel=1)
    single.post(run_message(1, max_tokens=3, **other))
    single.turn()
    single.post(run_message(2, priority=1))
    single.finish()
    assert [step.preempted for step in single.steps if step.preempted] == []
    ends = [end.run for step in single.steps for end in step.ended]
    assert ends == [1, 2]


def test_a_model_that_finds_no_room_has_the_youngest_preempted(loop: HandLoop) -> None:
    """By the model's own count there was room; the step is repeated for the others."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.model.next_outcome = Outcome.NO_ROOM
    loop.turn()
    assert (loop.steps[-1].preempted, loop.steps[-1].ended) == ((2,), ())
    loop.finish()
    assert loop.ends(1) == ["length"]


def test_a_model_that_has_less_room_than_it_says_serves_one_run_after_the_other(loop: HandLoop) -> None:
    """The preempted run waits until another run has ended, and does not take the room again in the next turn."""
    room_for_one = loop.model.decode

    def decode(batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        loop.model.next_outcome = Outcome.NO_ROOM if len(set(batch.sequences)) > 1 else None
        return room_for_one(batch, abort_mode=abort_mode)

    loop.model.decode = decode  # type: ignore[method-assign]
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    loop.finish(most=100)
    assert (loop.ends(1), loop.ends(2)) == (["length"], ["length"])
    assert sum(isinstance(message, Started) for message in loop.sent) == 3


def test_a_run_alone_that_finds_no_room_fails(loop: HandLoop) -> None:
    """There is no other run to preempt; the engine continues."""
    loop.post(run_message(1, max_tokens=9))
    in_decode(loop, 1)
    loop.model.next_outcome = Outcome.NO_ROOM
    loop.turn()
    assert [(end.run, end.error_code) for end in loop.steps[-1].ended] == [(1, "INTERNAL")]


SHARED = QUICK + "s" * 600


@pytest.mark.parametrize("parallel", [2, 3], ids=["no slot free", "a slot free"])
def test_a_run_that_computes_the_prefix_of_an_urgent_one_is_as_urgent(
    make_loop: MakeLoop, parallel: int
) -> None:
    """Runs between the two neither preempt it nor have their prompts computed first. When the prefix is computed it is
    as urgent as it was."""
    it = make_loop(parallel=parallel)
    it.post(run_message(1, max_tokens=200, priority=-9, order=-90.0))
    it.post(run_message(2, SHARED + "a" * 600, priority=5, order=50.0, cache=""))
    it.turn(2)
    it.post(run_message(3, SHARED + "bc", priority=-5, order=-50.0, cache=""))
    it.turn()
    it.post(run_message(4, "m" * 600, order=0.0))
    while not it.tokens(3):
        it.turn()
        assert not it.tokens(4), "the medium one was served before the urgent one"
    it.finish()
    ends = [end.run for step in it.steps for end in step.ended]
    assert ends.index(3) < ends.index(4) < ends.index(2)


def test_runs_that_wait_for_a_prefix_are_counted_so_that_others_get_the_slots(make_loop: MakeLoop) -> None:
    """While they wait, and no longer."""
    it = make_loop(parallel=4)
    it.post(*(run_message(run, SHARED + "ab"[run % 2], max_tokens=9, cache="") for run in range(1, 7)))
    it.turn()
    assert it.steps[-1].followers == 5
    it.post(run_message(7, "other", max_tokens=9))
    it.turn(2)
    assert it.tokens(7), "it takes a slot that they leave free"
    in_decode(it, 1)
    it.turn()
    assert it.steps[-1].followers == 0
    it.finish()
    computed = sum(step.prompt_computed for step in it.steps)
    assert computed <= len(SHARED) + 6 + len(run_message(7, "other").prompt) + 5 * 32


@pytest.mark.parametrize("kept", [True, False], ids=["warm", "evicted"])
def test_the_stop_of_a_preempted_run_says_what_stays_warm(make_loop: MakeLoop, kept: bool) -> None:
    """What a later run can reuse of it now, not what it left when it was preempted."""
    single = make_loop(parallel=1, cells=4096)
    single.post(run_message(1, SHARED, priority=1, cache="a", max_tokens=50))
    in_decode(single, 1)
    single.post(run_message(2, "urgent" if kept else "x" * 3700, order=-1.0, cache="b", max_tokens=200))
    while not single.tokens(2):
        single.turn()
    single.post(Stop(1))
    single.turn()
    (stop,) = single.stopped
    assert (stop.cells_before, stop.cells_after) == (0, 0)
    assert stop.cells_warm == (single.loop.cells_cached if kept else 0)
    assert (stop.cells_warm >= len(SHARED)) == kept
