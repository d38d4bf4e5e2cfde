"""When an engine is taken for stuck (G11)."""

from worker_orcd.supervisor.pulse import PREPARE_SEC, Pulse


def looked(pulse: Pulse, until: int, *, patience_sec: float = 3.0, start: int = 0) -> list[str | None]:
    """Look every second."""
    return [pulse.stuck(float(now), patience_sec=patience_sec) for now in range(start, until + 1)]


def test_an_engine_that_talks_is_not_stuck() -> None:
    """Whatever else it does."""
    pulse = Pulse(0.0)
    for now in range(60):
        pulse.heard(float(now))
        assert pulse.stuck(float(now), patience_sec=3.0) is None


def test_a_silent_one_is_stuck_after_its_patience() -> None:
    """Not before."""
    pulse = Pulse(0.0)
    assert looked(pulse, 3) == [None, None, None, "it has not answered for 3 s"]


def test_a_front_that_was_away_itself_does_not_blame_the_engine() -> None:
    """After a suspended hour it gets its patience again."""
    pulse = Pulse(0.0)
    assert pulse.stuck(3600.0, patience_sec=3.0) is None
    assert looked(pulse, 3603, start=3601) == [
        None,
        "it has not answered for 3 s",
        "it has not answered for 4 s",
    ]


def test_counting_prompts_is_watched_by_the_head_of_the_line() -> None:
    """A long line that gets on is no stuck one."""
    pulse = Pulse(0.0)
    for run in range(100):
        pulse.prepare(run, 0.0)
    for now in range(60):
        pulse.heard(float(now))
        pulse.prepared(now, float(now))
        assert pulse.stuck(float(now), patience_sec=3.0) is None
    for now in range(60, 69):
        pulse.heard(float(now))
        assert pulse.stuck(float(now), patience_sec=3.0) is None
    pulse.heard(70.0)
    assert pulse.stuck(70.0, patience_sec=3.0) == f"it has been at one prompt for {PREPARE_SEC:.0f} s"


def test_a_prompt_is_given_its_time_from_when_it_was_handed_over() -> None:
    """Not from when the one before it was done, an hour ago."""
    pulse = Pulse(0.0)
    pulse.prepared(1, 0.0)
    looked(pulse, 99, patience_sec=1000.0)
    pulse.prepare(2, 100.0)
    assert looked(pulse, 109, start=100, patience_sec=1000.0) == [None] * 10
