"""The escalation of a stop: patience, kill, deadline (G5). Pure: time comes in as an argument."""

import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.supervisor.escalation import StopEscalation, Verdict
from worker_orcd.supervisor.liveness import Spent


class InWallTime(StopEscalation):
    """The activity of an engine that sleeps: its own time is wall time."""

    looked_at = 0.0

    def verdict(self, now: float) -> Verdict:
        """Judge, after all of the time has counted."""
        self.advance(Spent(0.0, now - self.looked_at, 0.0), now)
        self.looked_at = now
        return super().verdict(now)


QUIET = Verdict(stuck=False, given_up=(), look_again_at=None)


def asked(deadline_sec: float = 5.0, step_ms: float = 0.0, *runs: int) -> InWallTime:
    """An escalation in which these runs (or run 1) were asked to stop at second 100."""
    escalation = InWallTime(deadline_sec)
    escalation.predict(step_ms)
    for run in runs or (1,):
        escalation.asked(run, 100.0)
    return escalation


def test_nothing_outstanding_needs_no_look() -> None:
    """No timer runs while no stop is outstanding."""
    assert InWallTime(5.0).verdict(100.0) == QUIET


def test_a_stop_within_patience_is_waited_for() -> None:
    """The next look is when the patience ends."""
    assert asked().verdict(100.5) == Verdict(stuck=False, given_up=(), look_again_at=101.0)


def test_an_engine_that_has_not_confirmed_within_its_patience_is_stuck() -> None:
    """With short steps patience is one second; the next look is at the deadline."""
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
    """For every deadline that can be configured, and never before a second has passed."""
    escalation = asked(deadline_sec, step_ms)
    assert 1.0 <= escalation.patience_sec <= deadline_sec - 2.0
    assert not escalation.verdict(100.99).stuck
    assert escalation.verdict(100.0 + deadline_sec - 1.999).stuck


def test_at_the_deadline_a_stop_is_given_up_once() -> None:
    """Its terminal event is written; after that no stop is outstanding."""
    escalation = asked()
    assert escalation.verdict(104.9).given_up == ()
    assert escalation.verdict(105.0) == Verdict(stuck=True, given_up=(1,), look_again_at=None)
    assert escalation.verdict(106.0) == QUIET


def test_a_confirmed_stop_is_no_longer_watched() -> None:
    """In time, and also after the engine was judged stuck."""
    escalation = asked()
    escalation.confirmed(1)
    assert escalation.verdict(200.0) == QUIET
    escalation.asked(2, 300.0)
    assert escalation.verdict(302.0).stuck
    escalation.confirmed(2)
    assert escalation.verdict(310.0) == QUIET


def test_an_unrequested_confirmation_is_harmless() -> None:
    """The natural end of every run is reported here too."""
    escalation = asked()
    escalation.confirmed(99)
    assert escalation.verdict(101.0).stuck


def test_asking_again_does_not_give_the_engine_more_time() -> None:
    """The five seconds count from the first time."""
    escalation = asked()
    for second in range(100, 105):
        escalation.asked(1, float(second))
    assert escalation.verdict(105.0).given_up == (1,)


def test_an_id_asked_for_again_after_its_confirmation_has_its_whole_time() -> None:
    """The earlier stop leaves nothing behind."""
    escalation = asked()
    escalation.confirmed(1)
    escalation.asked(1, 104.0)
    assert escalation.verdict(104.9) == Verdict(stuck=False, given_up=(), look_again_at=105.0)


def test_the_oldest_outstanding_stop_decides() -> None:
    """The confirmation of a later stop does not show that the engine works."""
    escalation = asked()
    escalation.asked(2, 100.9)
    escalation.confirmed(2)
    assert escalation.verdict(101.0).stuck


def test_each_stop_is_given_up_at_its_own_deadline() -> None:
    """The next look is then at the deadline of the next stop."""
    escalation = asked()
    escalation.asked(2, 102.0)
    escalation.asked(3, 102.0)
    assert escalation.verdict(105.0) == Verdict(stuck=True, given_up=(1,), look_again_at=107.0)
    assert escalation.verdict(107.0) == Verdict(stuck=True, given_up=(2, 3), look_again_at=None)


def test_the_engine_s_death_confirms_everything_and_its_successor_begins_anew() -> None:
    """The predicted step time of the dead engine is dropped as well."""
    escalation = asked(5.0, 250.0, 1, 2, 3)
    assert escalation.patience_sec == pytest.approx(2.5)
    escalation.engine_lost()
    assert escalation.verdict(200.0) == QUIET
    assert escalation.patience_sec == 1.0


def test_a_longer_prediction_gives_more_patience_to_a_stop_that_waits_already() -> None:
    """A slow engine is not stuck: its latest prediction counts."""
    escalation = asked()
    escalation.predict(200.0)
    assert escalation.verdict(101.5) == Verdict(stuck=False, given_up=(), look_again_at=102.0)


@given(
    asks=st.lists(st.tuples(st.integers(1, 5), st.floats(0, 10)), max_size=12),
    step_ms=st.floats(0, 500),
    deadline_sec=st.floats(3, 8),
)
@settings(deadline=None)
def test_looking_only_when_due_gives_every_stop_up_in_time_and_kills_before(
    asks: list[tuple[int, float]], step_ms: float, deadline_sec: float
) -> None:
    """If looks happen only at `look_again_at`, each stop is given up exactly once, at its deadline, and the engine
    is killed before."""
    escalation = InWallTime(deadline_sec)
    escalation.predict(step_ms)
    first: dict[int, float] = {}
    given_up: dict[int, float] = {}
    stuck_since: float | None = None
    look_at: float | None = None
    coming = sorted(asks, key=lambda ask: ask[1])
    while coming or look_at is not None:
        if coming and (look_at is None or coming[0][1] <= look_at):
            run, now = coming.pop(0)
            escalation.asked(run, now)
            if run not in first or run in given_up:
                first[run] = now
                given_up.pop(run, None)
        else:
            assert look_at is not None
            now = look_at
        verdict = escalation.verdict(now)
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


def test_a_starved_engine_gets_more_time_to_confirm() -> None:
    """It has one second of its own time, however long that takes (G16)."""
    escalation = StopEscalation(10.0)
    escalation.asked(1, 100.0)
    for tenth in range(1, 70):
        now = 100.0 + tenth / 10
        escalation.advance(Spent(computing=0.01, idle=0.0, disk=0.0), now)
        assert not escalation.verdict(now).stuck


@pytest.mark.parametrize("deadline_sec", [3.0, 5.0, 30.0])
def test_a_client_waits_no_longer_than_the_deadline_though_the_engine_is_starved(deadline_sec: float) -> None:
    """The engine is killed two seconds before the deadline, whatever the reason (G5)."""
    escalation = StopEscalation(deadline_sec)
    escalation.asked(1, 100.0)
    kill_at = 100.0 + deadline_sec - 2.0
    now = 100.0
    while not (verdict := escalation.verdict(now)).stuck:
        assert verdict.look_again_at is not None
        assert now < verdict.look_again_at <= kill_at
        now = verdict.look_again_at
    assert now == kill_at
    assert escalation.verdict(100.0 + deadline_sec).given_up == (1,)


def test_an_engine_that_computes_and_confirms_nothing_is_stuck_after_its_patience() -> None:
    """An endless native call uses up the engine's own time."""
    escalation = StopEscalation(60.0)
    escalation.asked(1, 100.0)
    escalation.advance(Spent(computing=0.9, idle=0.0, disk=0.0), 101.8)
    assert not escalation.verdict(101.8).stuck
    escalation.advance(Spent(computing=0.1, idle=0.0, disk=0.0), 102.0)
    assert escalation.verdict(102.0).stuck
