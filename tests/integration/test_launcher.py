"""Spare engine processes: used when an engine dies, never with old settings, and never left behind."""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable

import psutil
import pytest

from tests.helpers import is_gone
from worker_orcd.child_process import wait_until
from worker_orcd.protocol.framing import encode
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import FromEngine, Load
from worker_orcd.supervisor import launcher as launcher_module
from worker_orcd.supervisor.early import EarlyEngine
from worker_orcd.supervisor.engine import Death
from worker_orcd.supervisor.launcher import EngineLauncher
from worker_orcd.supervisor.local import LocalEngine
from worker_orcd.supervisor.proc import is_stopped
from worker_orcd.testing.harness import running_worker

LOAD = Load("a.gguf", "w", None, 1, 256, exact=False, threads=1, log_format="json")


class Nobody:
    """Listens to nothing."""

    def on_message(self, message: FromEngine) -> None:
        """Nothing."""

    def lost(self, death: Death) -> None:
        """Nothing."""


class Processes:
    """Starts processes that wait, as engines without a model do, and keeps the other ends of their sockets."""

    def __init__(self) -> None:
        self.started: list[EarlyEngine] = []
        self.ends: list[socket.socket] = []

    async def start(self) -> EarlyEngine:
        """Start one."""
        process = await asyncio.create_subprocess_exec("sleep", "600")
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        self.started.append(EarlyEngine(process, ours, InterruptByte.create()))
        return self.started[-1]

    async def spare(self, launcher: EngineLauncher) -> EarlyEngine:
        """Wait until the launcher has a spare."""
        launcher.keep_spare()
        await until(lambda: launcher._spare is not None)
        assert launcher._spare is not None
        return launcher._spare

    def greeting(self, number: int) -> bytes:
        """What the process with this number got."""
        return self.ends[number].recv(1 << 16, socket.MSG_DONTWAIT)


Scenario = Callable[[Processes, EngineLauncher], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    """Play a scenario; afterwards no process is left."""
    monkeypatch.setattr(launcher_module, "SPARE_AFTER_SEC", 0.0)

    async def whole(scenario: Scenario) -> None:
        processes = Processes()
        launcher = EngineLauncher(processes.start)
        await scenario(processes, launcher)
        await launcher.close()
        for early, end in zip(processes.started, processes.ends, strict=True):
            end.close()
            assert early.process.returncode is not None, "a process is left"

    return lambda scenario: asyncio.run(asyncio.wait_for(whole(scenario), 30))


async def until(condition: Callable[[], bool]) -> None:
    """Give way until it holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never holds")


async def end(engine: LocalEngine) -> None:
    """Kill an engine, and wait for its end."""
    engine.kill("the test is over")
    await engine.close()


def test_a_spare_gets_the_order_of_the_moment_in_which_it_is_needed(
    play: Callable[[Scenario], None],
) -> None:
    """Nothing is sent to it before, so it has no settings that could be old. It is used once."""

    async def scenario(processes: Processes, launcher: EngineLauncher) -> None:
        first = await launcher.launch(LOAD, Nobody())
        spare = await processes.spare(launcher)
        with pytest.raises(BlockingIOError):
            processes.greeting(1)
        later = Load("b.gguf", "w", None, 1, 512, exact=False, threads=1, log_format="json")
        second = await launcher.launch(later, Nobody())
        await asyncio.sleep(0)
        assert second.pid == spare.process.pid
        assert (processes.greeting(0), processes.greeting(1)) == (encode(LOAD), encode(later))
        third = await launcher.launch(later, Nobody())
        assert len(processes.started) == 3
        for engine in (first, second, third):
            await end(engine)

    play(scenario)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_a_spare_that_is_dead_or_stopped_is_replaced_by_a_new_process(
    play: Callable[[Scenario], None], sig: signal.Signals
) -> None:
    """Also if the front has not learned of its death yet."""

    async def scenario(processes: Processes, launcher: EngineLauncher) -> None:
        spare = await processes.spare(launcher)
        os.kill(spare.process.pid, sig)
        while not is_stopped(spare.process.pid):
            os.sched_yield()
        engine = await launcher.launch(LOAD, Nobody())
        assert engine.pid == processes.started[1].process.pid
        await end(engine)

    play(scenario)


def test_a_spare_that_dies_is_replaced_once_the_next_engine_is_ready(
    play: Callable[[Scenario], None],
) -> None:
    """Not before: what killed it may kill the next one, too."""

    async def scenario(processes: Processes, launcher: EngineLauncher) -> None:
        spare = await processes.spare(launcher)
        spare.process.kill()
        await until(lambda: launcher._spare is None)
        await asyncio.sleep(0.05)
        assert len(processes.started) == 1
        again = await processes.spare(launcher)
        launcher.keep_spare()
        assert again.process.pid != spare.process.pid

    play(scenario)


def test_a_killed_engine_s_stream_continues_in_the_spare_and_none_is_left_behind() -> None:
    """In a whole worker. The spare has no model before, and the next one comes soon."""
    with running_worker("scripted", spare_engine="on") as worker:
        front = psutil.Process(worker.process.pid)

        def spares() -> list[int]:
            return [child.pid for child in front.children() if child.pid != worker.engine_pid]

        wait_until(lambda: len(spares()) == 1, within_sec=30, what="the spare process")
        (spare,) = spares()
        stream = worker.execute("a", '{"token_ms": 20}', max_tokens=40).tokens_seen(5)
        worker.signal_engine(signal.SIGKILL)
        stream.finished().assert_whole()
        assert len(stream.tokens) == 40
        assert worker.engine_pid == spare
        wait_until(lambda: len(spares()) == 1, within_sec=30, what="the next spare process")
        left = [child.pid for child in front.children()]
    assert all(map(is_gone, left))
