"""The first engine, which is started before the server is imported."""

import asyncio
import os
from pathlib import Path

import psutil

from worker_orcd.protocol.messages import FromEngine, Load, LoadFailed
from worker_orcd.supervisor.early import EarlyEngine
from worker_orcd.supervisor.engine import Death
from worker_orcd.supervisor.local import LocalEngine
from worker_orcd.testing.harness import running_worker


def load_of(path: Path) -> Load:
    """The order to load this file."""
    return Load(str(path), "early", None, 1, 256, exact=False, threads=1, log_format="json")


class Listener:
    """Keeps what an engine sends."""

    def __init__(self) -> None:
        self.messages: list[FromEngine] = []
        self.death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    def on_message(self, message: FromEngine) -> None:
        """Keep it."""
        self.messages.append(message)

    def lost(self, death: Death) -> None:
        """The last thing."""
        self.death.set_result(death)


def test_what_it_sent_before_it_was_adopted_is_not_lost(tmp_path: Path) -> None:
    """Also when it is dead by then: its messages come first, and then its death."""

    early = EarlyEngine.start(load_of(tmp_path / "missing.gguf"), None)
    os.waitid(os.P_PID, early.process.pid, os.WEXITED | os.WNOWAIT)

    async def adopted() -> None:
        listener = Listener()
        engine = await LocalEngine.adopt(early, listener)
        death = await asyncio.wait_for(listener.death, 60)
        assert [type(message) for message in listener.messages] == [LoadFailed]
        assert (death.pid, death.exit_code) == (engine.pid, 1)

    asyncio.run(adopted())


def test_it_ends_when_the_worker_cannot_start(tmp_path: Path) -> None:
    """At once, whatever it is doing."""
    early = EarlyEngine.start(load_of(tmp_path / "missing.gguf"), None)
    early.end()
    assert early.process.returncode is not None


def test_a_worker_starts_no_other_one_beside_it() -> None:
    """Its engine is the one that was started early."""
    with running_worker("llama", context_length=512, parallel=1) as worker:
        children = psutil.Process(worker.process.pid).children()
        assert [child.pid for child in children] == [worker.engine_pid]
