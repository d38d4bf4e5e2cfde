"""The supervisor: it starts an engine, forwards messages, replaces a dead engine, and closes the last one."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from tests.supervisor_bench import READY, SUBMIT, Bench, stopped
from worker_orcd.protocol.messages import (
    Begin,
)
from worker_orcd.supervisor.engine import Death
from worker_orcd.supervisor.supervisor import EngineState

BEGIN = Begin(1, 1)


def test_a_supervisor_is_ready_when_its_engine_is_ready(play: Callable[..., Bench]) -> None:
    """Until then it is loading; the engine's messages are passed on."""

    seen: list[tuple[EngineState, bool, int | None]] = []

    async def scenario(bench: Bench) -> None:
        it = bench.supervisor
        seen.append((it.state, it.ever_ready, it.pid))
        await bench.ready()
        seen.append((it.state, it.ever_ready, it.pid))

    assert play(scenario).received == [READY]
    assert seen == [(EngineState.LOADING, False, None), (EngineState.READY, True, 101)]


def test_what_is_sent_reaches_the_engine_in_order(play: Callable[..., Bench]) -> None:
    """For example: submit, begin, stop."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.prepare(SUBMIT)
        bench.supervisor.begin(BEGIN)
        bench.supervisor.stop(1)
        engine.sends(stopped(1))
        assert engine.reported == [SUBMIT, BEGIN, 1]

    play(scenario)


def test_what_is_sent_while_there_is_no_engine_is_dropped(play: Callable[..., Bench]) -> None:
    """The worker sends it again once the next engine is ready."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.prepare(SUBMIT)
        bench.supervisor.begin(BEGIN)
        assert (await bench.ready()).reported == []

    play(scenario)


def has_started(bench: Bench, number: int) -> bool:
    """Whether so many engines were launched."""
    return len(bench.engines) == number


def test_engines_that_die_as_soon_as_they_are_ready_are_replaced_with_growing_pauses(
    play: Callable[..., Bench],
) -> None:
    """The supervisor neither gives up nor restarts in a tight loop; an engine that lived for a while is replaced at
    once again."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        for number in range(2, 10):
            engine.die()
            await bench.until(partial(has_started, bench, number))
            engine = bench.engine
            engine.sends(READY)
        assert bench.supervisor.state is EngineState.READY
        await asyncio.sleep(3)
        engine.die()
        await bench.until(lambda: len(bench.engines) == 10)

    bench = play(scenario)
    assert bench.pauses[0] < 0.1
    assert bench.pauses[1:5] == [pytest.approx(0.1 * 2**n, abs=0.1) for n in range(4)]
    assert bench.pauses[7] == pytest.approx(5.0, abs=0.1)


def test_a_prompt_whose_job_has_ended_is_dropped(play: Callable[..., Bench]) -> None:
    """So that the engine does not compute for it."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.drop(1)
        assert engine.reported == ["drop 1"]

    play(scenario)


def test_a_dead_engine_that_was_ready_is_replaced_at_once(play: Callable[..., Bench]) -> None:
    """Its death is reported, then the next one loads."""
    seen: list[tuple[EngineState, int | None]] = []

    async def scenario(bench: Bench) -> None:
        first = await bench.ready()
        first.die()
        seen.append((bench.supervisor.state, bench.supervisor.pid))
        assert bench.supervisor.reason == "it died of SIGSEGV"
        await bench.until(lambda: len(bench.engines) == 2)
        seen.append((bench.supervisor.state, bench.supervisor.pid))
        bench.engine.sends(READY)
        seen.append((bench.supervisor.state, bench.supervisor.pid))
        assert bench.supervisor.restarts == 1

    bench = play(scenario)
    assert bench.received == [READY, Death("it died of SIGSEGV", 101, signal="SIGSEGV"), READY]
    assert bench.pauses[0] < 0.1
    assert seen == [(EngineState.LOST, None), (EngineState.LOADING, 102), (EngineState.READY, 102)]


def test_an_engine_that_keeps_dying_after_it_was_ready_is_restarted_again_and_again(
    play: Callable[..., Bench],
) -> None:
    """Each ready start resets the count: only failed starts in a row lead to giving up."""

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        for n in range(1, 12):
            bench.engine.die()
            await bench.until(lambda n=n: len(bench.engines) == n + 1)  # type: ignore[misc]  # Bound now, not later.
            bench.engine.sends(READY)
        assert bench.supervisor.state is EngineState.READY
        assert bench.supervisor.restarts == 11

    play(scenario)


def test_closing_ends_the_engine_and_starts_no_other(play: Callable[..., Bench]) -> None:
    """Its death is reported, and nothing else happens."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        await bench.supervisor.close()
        assert engine.closed
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.engines) == 1
    assert bench.received == [READY, Death("it was closed", 101)]


@pytest.mark.parametrize("launches", [1, 2, 3, 4])
def test_closing_during_a_pause_between_starts_starts_no_other(
    play: Callable[..., Bench], launches: int
) -> None:
    """Whether the pause is shorter or longer than a shutdown waits."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [None] * 9
        bench.supervisor.start()
        await bench.until(lambda: len(bench.launched_at) == launches)
        before = bench.now
        await bench.supervisor.close()
        assert bench.now - before <= 1.1
        await asyncio.sleep(60)

    assert len(play(scenario).launched_at) == launches


def test_killing_for_good_starts_no_other(play: Callable[..., Bench]) -> None:
    """A shutdown without time left does this."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.kill("the worker shuts down")
        await asyncio.sleep(60)
        assert len(engine.killed_at) == 1

    assert len(play(scenario).engines) == 1


def test_closing_before_anything_was_launched_is_harmless(play: Callable[..., Bench]) -> None:
    """A start-up that failed earlier does this."""

    async def scenario(bench: Bench) -> None:
        await bench.supervisor.close()

    assert play(scenario).engines == []
