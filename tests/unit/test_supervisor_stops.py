"""Stops that an engine does not confirm in time."""

import asyncio
from collections.abc import Callable

import pytest

from tests.supervisor_bench import READY, Bench, computing, step, stopped
from worker_orcd.protocol.messages import (
    Step,
)
from worker_orcd.supervisor.engine import Death
from worker_orcd.supervisor.supervisor import EngineState


def test_a_stop_ends_in_time_even_if_the_engine_is_only_starved(play: Callable[..., Bench]) -> None:
    """The client's five seconds take precedence: two of them are left for the engine's death (G5)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.activity_is = computing(bench, 0.01)
        engine.answers_pings = False
        bench.supervisor.stop(1)
        asked_at = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at[0] - asked_at == pytest.approx(3.0, abs=0.1)

    play(scenario)


def test_a_stop_that_is_confirmed_in_time_kills_no_engine(play: Callable[..., Bench]) -> None:
    """However much time passes afterwards."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        await asyncio.sleep(0.9)
        engine.sends(stopped(1))
        await asyncio.sleep(60)
        assert engine.killed_at == []

    assert play(scenario).supervisor.state is EngineState.READY


def test_a_natural_end_confirms_a_stop_too(play: Callable[..., Bench]) -> None:
    """The run holds nothing any more, whatever ended it."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        engine.sends(step(10.0, 1))
        await asyncio.sleep(60)
        assert engine.killed_at == []

    play(scenario)


def test_an_engine_that_does_not_confirm_is_killed_and_replaced(play: Callable[..., Bench]) -> None:
    """Once, after a second; until its death is confirmed its state is stuck."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        asked_at = bench.now
        bench.supervisor.stop(1)
        await bench.until(lambda: len(bench.engines) == 2)
        assert engine.killed_at == [pytest.approx(asked_at + 1.0, abs=0.01)]
        bench.engine.sends(READY)
        await asyncio.sleep(60)

    bench = play(scenario)
    assert bench.received == [READY, Death("it was killed because it does not confirm a stop", 101), READY]
    assert bench.engines[1].killed_at == []


def test_an_engine_with_long_steps_is_given_ten_of_them(play: Callable[..., Bench]) -> None:
    """By the length that it predicted last."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.sends(step(200.0))
        asked_at = bench.now
        bench.supervisor.stop(1)
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at == [pytest.approx(asked_at + 2.0, abs=0.01)]

    play(scenario)


def test_an_engine_that_reports_steps_but_does_not_confirm_a_stop_is_killed(
    play: Callable[..., Bench],
) -> None:
    """Steps do not confirm a stop."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        for _ in range(11):
            await asyncio.sleep(0.1)
            engine.sends(step(10.0))
        assert len(engine.killed_at) == 1

    play(scenario)


def test_a_stuck_engine_shows_as_stuck_until_it_is_dead(play: Callable[..., Bench]) -> None:
    """Health reports it (G11). It is killed only once, however many stops are outstanding."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.dies_when_killed = False
        bench.supervisor.stop(1)
        await bench.until(lambda: bool(engine.killed_at))
        assert bench.supervisor.state is EngineState.STUCK
        assert bench.supervisor.reason == "it does not confirm a stop"
        bench.supervisor.stop(2)
        await asyncio.sleep(3.5)
        assert bench.supervisor.state is EngineState.STUCK
        assert len(engine.killed_at) == 1
        engine.die()
        await bench.until(lambda: len(bench.engines) == 2)

    play(scenario)


def test_a_run_that_was_preempted_while_it_is_being_stopped_stays_in_the_escalation(
    play: Callable[..., Bench],
) -> None:
    """Its `Stopped` is still to come; an engine that hangs before it is killed, and the stop given up, in time (G5)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.dies_when_killed = False
        bench.supervisor.stop(1)
        engine.sends(Step(10.0, (), (), (), 0, 0, 10.0, preempted=(1,)))
        await asyncio.sleep(10)
        assert engine.killed_at

    assert ("give up", 1) in [event[:2] for event in play(scenario).received if isinstance(event, tuple)]


def test_a_stop_is_given_up_at_its_deadline_if_not_even_the_death_is_confirmed(
    play: Callable[..., Bench],
) -> None:
    """Five seconds after its request, for each stop separately (G5)."""
    asked: dict[int, float] = {}

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.dies_when_killed = False
        asked[1] = bench.now
        bench.supervisor.stop(1)
        await asyncio.sleep(2.0)
        asked[2] = bench.now
        bench.supervisor.stop(2)
        bench.supervisor.stop(1)
        await asyncio.sleep(20)

    bench = play(scenario)
    assert bench.received[1:] == [
        ("give up", 1, pytest.approx(asked[1] + 5.0, abs=0.01)),
        ("give up", 2, pytest.approx(asked[2] + 5.0, abs=0.01)),
    ]


def test_the_kill_leaves_two_seconds_of_a_shorter_deadline(play: Callable[..., Bench]) -> None:
    """The shortest deadline that can be configured is three seconds."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.sends(step(5000.0))
        asked_at = bench.now
        bench.supervisor.stop(1)
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at == [pytest.approx(asked_at + 1.0, abs=0.01)]

    play(scenario, 3.0)


def test_the_death_confirms_every_stop_and_the_next_engine_is_not_blamed(play: Callable[..., Bench]) -> None:
    """No stop of the dead engine is outstanding."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        bench.supervisor.stop(2)
        engine.die()
        await bench.until(lambda: len(bench.engines) == 2)
        bench.engine.sends(READY)
        await asyncio.sleep(60)
        assert bench.engine.killed_at == []

    assert not [event for event in play(scenario).received if isinstance(event, tuple)]
