"""A stop interrupts a step only after a short wait, and a protected step only when the stop is overdue."""

from collections.abc import Callable

import pytest

from tests.fakes import HandTimers
from worker_orcd.supervisor.interrupter import INTERRUPT_AFTER_SEC, OVERDUE_AFTER_SEC, Interrupter


@pytest.fixture
def timers() -> HandTimers:
    """Timers that go off when their clock is moved."""
    return HandTimers()


@pytest.fixture
def calls() -> list[str]:
    """The interrupts so far."""
    return []


@pytest.fixture
def interrupter(timers: HandTimers, calls: list[str]) -> Interrupter:
    """An interrupter that notes its interrupts."""

    def note(what: str) -> Callable[[], None]:
        return lambda: calls.append(what)

    return Interrupter(timers.call_later, note("any"), note("overdue"))


def test_a_stop_that_is_confirmed_soon_interrupts_nothing(
    timers: HandTimers, calls: list[str], interrupter: Interrupter
) -> None:
    """A short step ends by itself and is not computed twice."""
    interrupter.stop_sent(1)
    timers.run_until(INTERRUPT_AFTER_SEC * 0.9)
    interrupter.stopped(1)
    timers.run_until(10.0)
    assert calls == []


def test_a_stop_that_waits_interrupts_and_later_is_overdue(
    timers: HandTimers, calls: list[str], interrupter: Interrupter
) -> None:
    """First any step, later also a protected one; each once, and within 100 ms."""
    interrupter.stop_sent(1)
    timers.run_until(INTERRUPT_AFTER_SEC)
    assert calls == ["any"]
    timers.run_until(OVERDUE_AFTER_SEC)
    assert calls == ["any", "overdue"]
    timers.run_until(10.0)
    assert calls == ["any", "overdue"]
    assert INTERRUPT_AFTER_SEC <= 0.012
    assert OVERDUE_AFTER_SEC <= 0.09


def test_each_stop_has_its_own_time(timers: HandTimers, calls: list[str], interrupter: Interrupter) -> None:
    """Neither the confirmation of another stop nor a repeated request changes when a stop interrupts."""
    interrupter.stop_sent(1)
    timers.run_until(INTERRUPT_AFTER_SEC / 2)
    interrupter.stop_sent(2)
    interrupter.stopped(1)
    interrupter.stop_sent(2)
    timers.run_until(INTERRUPT_AFTER_SEC * 1.4)
    assert calls == []
    timers.run_until(INTERRUPT_AFTER_SEC * 1.5)
    assert calls == ["any"]
    interrupter.stopped(99)


def test_after_its_engines_death_nothing_is_interrupted(
    timers: HandTimers, calls: list[str], interrupter: Interrupter
) -> None:
    """The byte is gone then."""
    interrupter.stop_sent(1)
    interrupter.stop_sent(2)
    interrupter.close()
    timers.run_until(10.0)
    assert calls == []
