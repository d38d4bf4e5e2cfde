"""The ladder of a stop: patience, kill, deadline (G5). Pure: time comes in as an argument."""

import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.supervisor.ladder import StopLadder, Verdict

QUIET = Verdict(stuck=False, given_up=(), look_again_at=None)


def asked(deadline_sec: float = 5.0, step_ms: float = 0.0, *runs: int) -> StopLadder:
    """A ladder on which these runs (or run 1) were asked to stop at second 100."""
    ladder = StopLadder(deadline_sec)
    ladder.predict(step_ms)
    for run in runs or (1,):
        ladder.asked(run, 100.0)
    return ladder


def test_nothing_outstanding_needs_no_look() -> None:
    """No timer runs while nobody is being stopped."""
    assert StopLadder(5.0).verdict(100.0) == QUIET


def test_a_stop_within_patience_is_waited_for() -> None:
    """And looked at again when patience ends."""
    assert asked().verdict(100.5) == Verdict(stuck=False, given_up=(), look_again_at=101.0)


def test_an_engine_that_has_not_confirmed_within_its_patience_is_stuck() -> None:
    """One second with short steps; the next look is at the deadline."""
    assert asked().verdict(101.0) == Verdict(stuck=True, given_up=(), look_again_at=105.0)


@pytest.mark.parametrize(
    ("step_ms", "patience"),
    [(0, 1.0), (50, 1.0), (100, 1.0), (150, 1.5), (299, 2.99), (300, 3.0), (60_000, 3.0)],
)
def test_patience_is_ten_predicted_steps_but_a_second_at_least_and_kills_in_time(
    step_ms: float, patience: float
) -> None:
    """However long its steps, two seconds are left to confirm the death."""
    assert asked(5.0, step_ms).patience_sec == pytest.approx(patience)


@given(deadline_sec=st.floats(3, 60), step_ms=st.floats(0, 1e6))
@settings(deadline=None)
def test_the_kill_comes_at_least_two_seconds_before_the_deadline(deadline_sec: float, step_ms: float) -> None:
    """For every deadline that can be configured; and never before a second has passed."""
    ladder = asked(deadline_sec, step_ms)
    assert 1.0 <= ladder.patience_sec <= deadline_sec - 2.0
    assert not ladder.verdict(100.99).stuck
    assert ladder.verdict(100.0 + deadline_sec - 1.999).stuck


def test_at_the_deadline_a_stop_is_given_up_once() -> None:
    """Its reader is told; after that there is nothing outstanding."""
    ladder = asked()
    assert ladder.verdict(104.9).given_up == ()
    assert ladder.verdict(105.0) == Verdict(stuck=True, given_up=(1,), look_again_at=None)
    assert ladder.verdict(106.0) == QUIET


def test_a_confirmed_stop_is_off_the_ladder() -> None:
    """In time, and also after the engine was judged stuck."""
    ladder = asked()
    ladder.confirmed(1)
    assert ladder.verdict(200.0) == QUIET
    ladder.asked(2, 300.0)
    assert ladder.verdict(302.0).stuck
    ladder.confirmed(2)
    assert ladder.verdict(310.0) == QUIET


def test_confirming_what_nobody_asked_for_is_harmless() -> None:
    """Every run's natural end is reported here too."""
    ladder = asked()
    ladder.confirmed(99)
    assert ladder.verdict(101.0).stuck


def test_asking_again_does_not_give_the_engine_more_time() -> None:
    """The five seconds count from the first time."""
    ladder = asked()
    for second in range(100, 105):
        ladder.asked(1, float(second))
    assert ladder.verdict(105.0).given_up == (1,)


def test_an_id_asked_for_again_after_its_confirmation_has_its_whole_time() -> None:
    """Nothing is left of the earlier one."""
    ladder = asked()
    ladder.confirmed(1)
    ladder.asked(1, 104.0)
    assert ladder.verdict(104.9) == Verdict(stuck=False, given_up=(), look_again_at=105.0)


def test_the_oldest_outstanding_stop_decides() -> None:
    """A confirmation of a later one does not show that the engine is well."""
    ladder = asked()
    ladder.asked(2, 100.9)
    ladder.confirmed(2)
    assert ladder.verdict(101.0).stuck


def test_each_stop_is_given_up_at_its_own_deadline() -> None:
    """And the next look is at that of the next one."""
    ladder = asked()
    ladder.asked(2, 102.0)
    ladder.asked(3, 102.0)
    assert ladder.verdict(105.0) == Verdict(stuck=True, given_up=(1,), look_again_at=107.0)
    assert ladder.verdict(107.0) == Verdict(stuck=True, given_up=(2, 3), look_again_at=None)


def test_the_engine_s_death_confirms_everything_and_its_successor_begins_anew() -> None:
    """Also what was known of its steps is no longer true."""
    ladder = asked(5.0, 250.0, 1, 2, 3)
    assert ladder.patience_sec == pytest.approx(2.5)
    ladder.engine_lost()
    assert ladder.verdict(200.0) == QUIET
    assert ladder.patience_sec == 1.0


def test_a_longer_prediction_gives_more_patience_to_a_stop_that_waits_already() -> None:
    """A slow engine is not a stuck one: what it last said of its step counts."""
    ladder = asked()
    ladder.predict(200.0)
    assert ladder.verdict(101.5) == Verdict(stuck=False, given_up=(), look_again_at=102.0)


@given(
    asks=st.lists(st.tuples(st.integers(1, 5), st.floats(0, 10)), max_size=12),
    step_ms=st.floats(0, 500),
    deadline_sec=st.floats(3, 8),
)
@settings(deadline=None)
def test_who_follows_look_again_at_gives_every_stop_up_in_time_and_kills_before(
    asks: list[tuple[int, float]], step_ms: float, deadline_sec: float
) -> None:
    """No stop falls through: with looks only when asked for, each is given up exactly once, at its deadline."""
    ladder = StopLadder(deadline_sec)
    ladder.predict(step_ms)
    first: dict[int, float] = {}
    given_up: dict[int, float] = {}
    stuck_since: float | None = None
    look_at: float | None = None
    coming = sorted(asks, key=lambda ask: ask[1])
    while coming or look_at is not None:
        if coming and (look_at is None or coming[0][1] <= look_at):
            run, now = coming.pop(0)
            ladder.asked(run, now)
            if run not in first or run in given_up:
                first[run] = now
                given_up.pop(run, None)
        else:
            assert look_at is not None
            now = look_at
        verdict = ladder.verdict(now)
        if not verdict.stuck:
            stuck_since = None
        elif stuck_since is None:
            stuck_since = now
        for run in verdict.given_up:
            assert run not in given_up
            given_up[run] = now
            assert stuck_since is not None
            assert now - stuck_since >= 2.0 - 0.01
            assert now - first[run] == pytest.approx(deadline_sec, abs=0.01)
        assert verdict.look_again_at is None or verdict.look_again_at >= now - 1e-9
        look_at = None if verdict.look_again_at is None else max(now + 0.001, verdict.look_again_at)
    assert set(given_up) == {run for run, _ in asks}
