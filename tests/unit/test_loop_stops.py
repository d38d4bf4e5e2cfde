"""The engine's loop, turned by hand: stops, and interrupted steps."""

import itertools

import pytest

from tests.fakes import HandLoop, MakeLoop, run_message
from tests.loop_runs import LONG, alone, in_decode, interrupted_step
from worker_orcd.engine.model import AbortMode, Outcome
from worker_orcd.engine.planner import SHORT_MS
from worker_orcd.protocol.messages import FromEngine, Step, Stop, Stopped


def test_a_confirmation_reports_the_cells_before_and_after(loop: HandLoop) -> None:
    """By the model's own count, for this run and for all runs (G4)."""
    loop.post(run_message(1, max_tokens=50))
    in_decode(loop, 1)
    held = sum(loop.cells_held())
    loop.post(Stop(1))
    assert loop.turn_idle()
    (confirmation,) = loop.stopped
    assert (confirmation.run, confirmation.cells_before, confirmation.cells_after) == (1, held, 0)
    assert (confirmation.cells_used, confirmation.sequences_used) == (0, 0)
    assert loop.model.samplers_open == 0


def test_the_cells_of_a_run_are_free_when_its_end_is_sent(loop: HandLoop) -> None:
    """Freed before the terminal event, checked while the message is sent: for a stop and for a natural end (G4)."""
    kv_usage: list[list[int]] = []

    def look(message: FromEngine) -> None:
        if isinstance(message, Stopped) or (isinstance(message, Step) and message.ended):
            kv_usage.append(loop.cells_held())

    loop.on_send = look
    loop.post(run_message(1, max_tokens=50), run_message(2, max_tokens=1))
    in_decode(loop, 1)
    loop.post(Stop(1))
    loop.finish()
    assert len(kv_usage) == 2
    assert kv_usage[0][0] > 0
    assert kv_usage[0][1] == 0, "run 2 ended by itself and held nothing when its end was sent"
    assert kv_usage[1] == [0, 0, 0, 0]


def test_a_stopped_run_has_no_token_afterwards(loop: HandLoop) -> None:
    """Its neighbour continues."""
    loop.post(run_message(1, max_tokens=50), run_message(2, max_tokens=50))
    in_decode(loop, 1, 2)
    reported = loop.tokens(1)
    loop.post(Stop(1))
    loop.turn()
    loop.turn()
    assert loop.tokens(1) == reported
    assert loop.ends(1) == []
    assert 0 not in loop.model.steps[-1].batch.sequences


def test_a_stop_of_a_run_that_the_engine_does_not_have_is_answered(loop: HandLoop) -> None:
    """An unknown run, or one that has ended: the confirmation reports that it holds nothing."""
    loop.post(run_message(1, max_tokens=1))
    loop.finish()
    loop.post(Stop(1), Stop(99))
    loop.turn_idle()
    assert [(s.run, s.cells_before, s.cells_after) for s in loop.stopped] == [(1, 0, 0), (99, 0, 0)]


def test_a_run_that_is_stopped_in_the_turn_of_its_arrival_is_not_computed(loop: HandLoop) -> None:
    """The engine reads both messages in the same turn."""
    loop.post(run_message(1), Stop(1))
    assert loop.turn_idle()
    assert loop.model.steps == []
    assert [message.run for message in loop.stopped] == [1]


def test_a_second_stop_is_answered_like_the_first(loop: HandLoop) -> None:
    """It frees nothing of another run."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.post(Stop(1), Stop(1))
    loop.turn()
    assert [message.cells_after for message in loop.stopped] == [0, 0]
    assert loop.stopped[1].cells_before == 0
    assert loop.steps[-1].sequences_used == 1


def test_a_stop_in_prefill_reports_how_much_of_the_prompt_was_computed(loop: HandLoop) -> None:
    """Only tokens that are computed count, not those of an aborted step."""
    loop.post(run_message(1, LONG * 2, max_tokens=2))
    loop.turn()
    computed = loop.steps[-1].progress[-1].prompt_processed
    interrupted_step(loop)
    assert loop.steps[-1].aborted
    loop.post(Stop(1))
    loop.turn_idle()
    assert loop.stopped[0].prompt_processed == computed
    assert loop.stopped[0].cells_before == computed


def test_ages_in_a_confirmation_are_from_the_loop_s_clock(loop: HandLoop) -> None:
    """Computing stops before the cells are freed, and both before the message is sent."""
    loop.post(run_message(1, max_tokens=9))
    in_decode(loop, 1)
    trim = loop.model.trim

    def slow_trim(sequence: int, length: int) -> bool:
        loop.clock.now += 0.003
        return trim(sequence, length)

    loop.model.trim = slow_trim  # type: ignore[method-assign]  # A model that frees cells slowly.
    loop.post(Stop(1))
    loop.turn_idle()
    confirmation = loop.stopped[0]
    assert confirmation.stopped_ago_ms == pytest.approx(3.0)
    assert confirmation.freed_ago_ms == pytest.approx(0.0)


def test_a_stop_that_arrives_after_messages_are_read_aborts_the_step_that_follows(loop: HandLoop) -> None:
    """The byte is cleared *before* messages are read, so a stop is read in this turn or aborts its step."""
    loop.post(run_message(1, LONG * 2), run_message(2))
    loop.turn()

    def arrive() -> None:
        loop.after_drain = lambda: None
        loop.post(Stop(1))

    loop.after_drain = arrive
    loop.turn()
    assert loop.model.steps[-1].outcome is Outcome.ABORTED
    assert loop.stopped == []
    loop.turn()
    assert [message.run for message in loop.stopped] == [1]


def test_a_stop_that_arrives_before_messages_are_read_aborts_no_step(loop: HandLoop) -> None:
    """Its byte is cleared, so the neighbours' step is not computed twice."""
    loop.post(run_message(1, LONG), run_message(2, LONG))
    loop.turn()
    loop.post(Stop(1))
    loop.turn()
    assert [message.run for message in loop.stopped] == [1]
    assert loop.model.steps[-1].outcome is Outcome.DONE


def test_the_byte_is_cleared_before_messages_are_read(loop: HandLoop) -> None:
    """The byte is checked while the messages are read."""
    seen: list[bool] = []
    loop.post(run_message(1), Stop(9))
    loop.after_drain = lambda: seen.append(loop.byte.is_set())
    assert loop.byte.is_set()
    loop.turn()
    assert seen == [False]


def test_an_interrupted_step_is_undone_and_reported_as_aborted(loop: HandLoop) -> None:
    """Its report has no token, no progress and no end; the cells are as before it."""
    loop.post(run_message(1, LONG * 2, max_tokens=2), run_message(2, max_tokens=50))
    in_decode(loop, 2)
    before = loop.cells_held()
    interrupted_step(loop)
    report = loop.steps[-1]
    assert report.aborted
    assert (report.tokens, report.progress, report.ended) == ((), (), ())
    assert loop.cells_held() == before
    assert report.cells_used == sum(before)


def test_an_interrupted_step_is_repeated_with_identical_tokens_for_all(
    loop: HandLoop, make_loop: MakeLoop
) -> None:
    """Every second step is aborted, and one run is stopped halfway: the others keep all their tokens (G6)."""
    lengths = {1: 300, 2: 5, 3: 150}
    loop.post(*(run_message(n, "p" * length, max_tokens=12) for n, length in lengths.items()))
    loop.post(run_message(4, LONG, max_tokens=12))
    loop.model.decode_ms = 8.0
    loop.model.during_step = loop.byte.set
    loop.turn(9)
    loop.post(Stop(4))
    loop.finish()
    assert sum(step.aborted for step in loop.steps) >= 10
    assert len(loop.stopped) == 1
    for n, length in lengths.items():
        assert loop.tokens(n) == alone(make_loop, n, "p" * length, max_tokens=12)
        assert loop.ends(n) == ["length"]
    assert loop.cells_held() == [0, 0, 0, 0]


def test_the_step_after_an_interrupted_one_is_short_and_protected(loop: HandLoop) -> None:
    """A storm of cancels cannot starve the neighbours, and the next stop waits only for a short step."""
    loop.post(run_message(1, LONG * 4, max_tokens=2))
    loop.turn(2)
    interrupted_step(loop)
    assert loop.model.steps[-1].outcome is Outcome.ABORTED
    assert loop.steps[-1].next_ms <= SHORT_MS
    interrupted_step(loop)
    protected = loop.model.steps[-1]
    assert protected.abort_mode is AbortMode.OVERDUE
    assert protected.outcome is Outcome.DONE
    interrupted_step(loop)
    assert loop.model.steps[-1].abort_mode is AbortMode.ANY
    assert loop.model.steps[-1].outcome is Outcome.ABORTED


def test_an_overdue_stop_aborts_a_protected_step(loop: HandLoop) -> None:
    """A step that really takes longer than a stop may wait is aborted."""
    loop.post(run_message(1, LONG * 4, max_tokens=2))
    loop.turn(2)
    interrupted_step(loop)
    loop.model.during_step = loop.byte.set_overdue
    loop.turn()
    assert loop.model.steps[-1].outcome is Outcome.ABORTED


def test_in_a_storm_of_stops_every_second_step_is_done(loop: HandLoop) -> None:
    """Work continues although the byte is set all the time."""
    loop.model.decode_ms = 20.0
    loop.post(run_message(1, max_tokens=30))
    loop.model.during_step = loop.byte.set
    loop.finish(most=100)
    outcomes = [step.outcome for step in loop.model.steps]
    assert len(loop.tokens(1)) == 30
    assert outcomes.count(Outcome.ABORTED) >= 25
    pairs = itertools.pairwise(outcomes)
    assert (Outcome.ABORTED, Outcome.ABORTED) not in pairs


@pytest.mark.parametrize("decode_ms", [0.1, 4.0, 30.0, 300.0])
def test_a_step_can_be_interrupted_however_short_it_is_predicted_to_be(
    loop: HandLoop, decode_ms: float
) -> None:
    """A step that is predicted to take 10 ms may take 300; the front decides whether a stop waits for it."""
    loop.model.decode_ms = decode_ms
    loop.post(run_message(1, max_tokens=30))
    in_decode(loop, 1)
    loop.turn(2)
    interrupted_step(loop)
    assert loop.model.steps[-1].abort_mode is AbortMode.ANY
    assert loop.steps[-1].aborted


def test_a_protected_step_has_only_as_many_decode_rows_as_are_sure_to_be_computed(
    make_loop: MakeLoop,
) -> None:
    """With four runs of 40 ms per row, four steps compute one run each; then all decode together again."""
    loop = make_loop()
    loop.model.decode_ms = 40.0
    loop.post(*(run_message(n, max_tokens=60) for n in range(1, 5)))
    in_decode(loop, 1, 2, 3, 4)
    loop.turn(20)
    reported = {n: len(loop.tokens(n)) for n in range(1, 5)}
    interrupted_step(loop)
    loop.turn(4)
    assert [len(step.batch.tokens) for step in loop.model.steps[-4:]] == [1, 1, 1, 1]
    assert {n: len(loop.tokens(n)) - reported[n] for n in range(1, 5)} == {1: 1, 2: 1, 3: 1, 4: 1}
    loop.turn()
    assert len(loop.model.steps[-1].batch.tokens) == 4


def test_an_aborted_step_does_not_change_the_time_estimate(loop: HandLoop) -> None:
    """If an aborted step counted as a whole one, the next steps would be planned too long."""
    loop.post(run_message(1, LONG * 4, max_tokens=2))
    loop.turn(3)
    expected = loop.model.steps[-1].rows_of(0)
    for _ in range(6):
        loop.model.prefill_row_ms = 0.01
        interrupted_step(loop)
        loop.model.prefill_row_ms = 1.0
        if loop.steps[-1].aborted:
            loop.turn()
    assert loop.model.steps[-1].rows_of(0) <= expected
