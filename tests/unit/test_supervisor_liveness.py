"""Engines that are silent: when the supervisor waits for them, and when it kills them."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from tests.supervisor_bench import SUBMIT, Bench, computing, step
from worker_orcd.protocol.messages import (
    Accepted,
    FromEngine,
    NarrationEvent,
    Rejected,
    Rendering,
)
from worker_orcd.supervisor.liveness import (
    FIRST_STEP_PATIENCE,
    LOADING_PATIENCE,
    PREPARE_SEC,
)
from worker_orcd.supervisor.supervisor import EngineState


def test_a_silent_engine_is_killed_without_any_stop_request(
    play: Callable[..., Bench],
) -> None:
    """After three seconds of silence; until its death is confirmed its state is stuck, so health is honest
    (G11)."""
    seen: list[EngineState] = []

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        await asyncio.sleep(30)
        assert engine.pings >= 25, "an idle engine is pinged"
        engine.answers_pings = False
        engine.dies_when_killed = False
        silent_from = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert 2 < engine.killed_at[0] - silent_from < 4.5
        seen.append(bench.supervisor.state)
        engine.die("it was killed because it has not answered for 3 s")
        await bench.until(lambda: len(bench.engines) == 2)

    bench = play(scenario)
    assert seen == [EngineState.STUCK]
    assert len(bench.engines) == 2


def test_an_engine_whose_steps_are_long_is_given_the_time_of_ten(play: Callable[..., Bench]) -> None:
    """An engine cannot answer in the middle of a step."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.sends(step(next_ms=700.0))
        engine.answers_pings = False
        silent_from = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert 6.5 < engine.killed_at[0] - silent_from < 8.5

    play(scenario)


def test_an_engine_that_loads_is_given_a_minute(play: Callable[..., Bench]) -> None:
    """Disks are slow; a stopped process is detected all the same."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.answers_pings = False
        loads_from = bench.now
        await bench.until(lambda: bool(bench.engines[0].killed_at))
        assert 59 < bench.engines[0].killed_at[0] - loads_from < 62

    play(scenario)


def test_a_starved_engine_is_not_killed_however_long_it_is_silent(play: Callable[..., Bench]) -> None:
    """It waits for a CPU (G16)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.sends(step())
        engine.activity_is = computing(bench, 0.01)
        engine.answers_pings = False
        await asyncio.sleep(200)
        assert bench.supervisor.state is EngineState.READY
        assert not engine.killed_at

    play(scenario)


def test_an_engine_that_waits_for_a_prompt_to_be_rendered_is_not_killed(play: Callable[..., Bench]) -> None:
    """One tenant's prompt costs no other its engine: the prompt's process ends by itself (G16)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.prepare(SUBMIT)
        engine.sends(Rendering(1, slow=True))
        await asyncio.sleep(60)
        assert not engine.killed_at
        engine.sends(Rendering(1, slow=False))
        await asyncio.sleep(PREPARE_SEC - 2)
        assert not engine.killed_at
        await bench.until(lambda: bool(engine.killed_at))

    play(scenario)


def test_an_engine_is_not_killed_for_a_prompt_that_an_earlier_one_has_tokenized(
    play: Callable[..., Bench],
) -> None:
    """A requeued job comes with its tokens, which no engine reports again (G7)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.prepare(msgspec.structs.replace(SUBMIT, tokens=(1, 2)))
        await asyncio.sleep(3 * PREPARE_SEC)
        assert not engine.killed_at

    play(scenario)


@pytest.mark.parametrize(
    "message",
    [Accepted(1, (5,)), Rejected(1, "no", "prompt"), Rendering(1, slow=True), NarrationEvent({}, "owner")],
)
def test_messages_of_side_threads_do_not_hide_a_stuck_loop(
    play: Callable[..., Bench], message: FromEngine
) -> None:
    """A tenant that sends prompts without pause does not keep a stuck engine alive (G11)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.answers_pings = False
        silent_from = bench.now
        while not engine.killed_at:
            assert bench.now - silent_from < 30
            await asyncio.sleep(0.5)
            engine.sends(message)

    play(scenario)


def test_a_model_whose_first_step_is_long_is_not_killed_for_it(play: Callable[..., Bench]) -> None:
    """Before the first step nothing is known of step times, so the engine may compute for a minute. If it sleeps,
    it is stuck."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.activity_is = computing(bench, 1.0)
        engine.answers_pings = False
        silent_from = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at[0] - silent_from == pytest.approx(FIRST_STEP_PATIENCE.computing, abs=2)

    play(scenario)


def test_a_model_that_computes_without_end_while_it_loads_is_found_and_not_tried_again(
    play: Callable[..., Bench],
) -> None:
    """The next start would not get further."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.activity_is = computing(bench, 1.0)
        bench.engine.answers_pings = False
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)

    bench = play(scenario)
    assert len(bench.engines) == 1
    assert bench.engine.killed_at[0] - bench.launched_at[0] == pytest.approx(
        LOADING_PATIENCE.computing, abs=3
    )
    assert bench.supervisor.failure is not None
    assert "computed for 60 s" in bench.supervisor.failure.message


def test_an_engine_that_never_finishes_a_prompt_is_killed(play: Callable[..., Bench]) -> None:
    """Its loop answers, but no job behind that prompt would ever run."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.prepare(SUBMIT)
        asked_at = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert 9.5 < engine.killed_at[0] - asked_at < 12

    play(scenario)
