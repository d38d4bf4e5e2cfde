"""Starts of engines that fail: which are tried again, and when the supervisor gives up."""

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.supervisor_bench import READY, Bench
from worker_orcd.protocol.messages import (
    LoadFailed,
)
from worker_orcd.supervisor.engine import Death
from worker_orcd.supervisor.supervisor import EngineState


def test_starts_that_fail_are_tried_five_times_with_growing_pauses(play: Callable[..., Bench]) -> None:
    """Then no engine is started any more; the last death is reported before that."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [None] * 9
        bench.supervisor.start()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.launched_at) == 5
    assert bench.pauses == sorted(bench.pauses)
    assert bench.pauses[0] >= 0.1
    assert all(later >= 2 * earlier - 0.01 for earlier, later in pairwise(bench.pauses))
    assert isinstance(bench.received[-2], Death)
    assert bench.received[-1] == (
        "permanently failed",
        "the model: the engine cannot be started: it exited with code 1",
        "MODEL_LOAD_FAILED",
    )
    assert [type(event) for event in bench.received[:-1]] == [Death] * 5


def test_an_engine_that_worked_once_and_cannot_be_brought_back_is_lost(play: Callable[..., Bench]) -> None:
    """After as many tries, with a different code than for a model that cannot be loaded."""

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        bench.dies_at_once = [None] * 9
        bench.engine.die()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)

    bench = play(scenario)
    assert len(bench.launched_at) == 1 + 5
    reason = "the model: the engine cannot be started: it exited with code 1"
    assert bench.received[-1] == ("permanently failed", reason, "ENGINE_LOST")


@pytest.mark.parametrize("fault", [OSError("no more"), ValueError("no more"), RuntimeError("no more")])
def test_a_process_that_cannot_even_be_started_counts_as_a_failed_start(
    play: Callable[..., Bench], fault: Exception
) -> None:
    """No more processes, or a message that cannot be encoded: tried again, then given up with the reason."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [fault] * 5
        bench.supervisor.start()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)

    bench = play(scenario)
    assert len(bench.launched_at) == 5
    assert bench.supervisor.reason is not None
    assert bench.supervisor.reason.endswith("its process cannot be started: no more")


def test_a_start_that_succeeds_after_failures_resets_the_count(play: Callable[..., Bench]) -> None:
    """After four failures, a ready engine and four more failures the supervisor has not given up."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [None] * 4
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 5)
        bench.engine.sends(READY)
        bench.dies_at_once = [None] * 4
        bench.engine.die()
        await bench.until(lambda: len(bench.engines) == 10)
        assert bench.supervisor.state is EngineState.LOADING
        bench.engine.sends(READY)

    assert play(scenario).supervisor.state is EngineState.READY


def test_a_model_that_cannot_be_loaded_at_first_is_not_tried_again(play: Callable[..., Bench]) -> None:
    """The operator has to change something; the engine's message and code are passed on."""
    failure = LoadFailed("INSUFFICIENT_VRAM", "m.gguf: 8 GB required, 4 available")

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [failure]
        bench.supervisor.start()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.launched_at) == 1
    assert bench.received == [
        failure,
        Death("it exited with code 1", 101),
        ("permanently failed", failure.message, "INSUFFICIENT_VRAM"),
    ]
    assert bench.supervisor.reason == failure.message


@pytest.mark.parametrize("crash", ["SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV"])
def test_a_model_that_crashes_the_engine_while_it_loads_is_not_tried_again(
    play: Callable[..., Bench], crash: str
) -> None:
    """The file would crash the next engine as well; the message says how the engine died."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.die(f"it died of {crash}")
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.launched_at) == 1
    reason = f"the model: the engine died of {crash} while it loaded the model"
    if crash == "SIGILL":
        reason += ": its llama.cpp was built for another CPU; set it up or install it anew"
    assert bench.received[1:] == [("permanently failed", reason, "MODEL_LOAD_FAILED")]


def test_an_engine_that_is_killed_while_it_loads_is_tried_again(play: Callable[..., Bench]) -> None:
    """A kill, for example by the kernel when memory is short, says nothing about the file."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.die("it died of SIGKILL")
        await bench.until(lambda: len(bench.engines) == 2)
        bench.engine.sends(READY)

    assert play(scenario).supervisor.state is EngineState.READY


def test_an_engine_that_crashes_while_it_loads_a_known_model_is_tried_again(
    play: Callable[..., Bench],
) -> None:
    """The file was loaded once, so it is not the cause."""

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        bench.engine.die("it died of SIGSEGV")
        await bench.until(lambda: len(bench.engines) == 2)
        bench.engine.die("it died of SIGABRT")
        await bench.until(lambda: len(bench.engines) == 3)
        bench.engine.sends(READY)

    assert play(scenario).supervisor.state is EngineState.READY


def test_a_model_that_was_loaded_once_is_tried_again_when_a_load_fails(play: Callable[..., Bench]) -> None:
    """The dead engine may still have held the memory."""
    failure = LoadFailed("INSUFFICIENT_VRAM", "not yet free")

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        bench.dies_at_once = [failure, failure]
        bench.engine.die()
        await bench.until(lambda: len(bench.engines) == 4)
        bench.engine.sends(READY)

    assert play(scenario).supervisor.state is EngineState.READY
