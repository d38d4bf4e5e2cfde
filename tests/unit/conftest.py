"""Fixtures that several unit tests share."""

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import HandLoop, MakeLoop
from tests.supervisor_bench import Bench, JumpingLoop, Scenario
from worker_orcd.jobs import queue
from worker_orcd.supervisor import supervisor as supervisor_module


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    """Make loops; they are closed afterwards."""
    made: list[HandLoop] = []

    def make(**given: Any) -> HandLoop:
        made.append(HandLoop(**given))
        return made[-1]

    yield make
    for loop in made:
        loop.close()


@pytest.fixture
def loop(make_loop: MakeLoop) -> HandLoop:
    """A loop with four sequences."""
    return make_loop()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """Run a scenario on a jumping loop; returns the bench."""

    def played(scenario: Scenario, deadline_sec: float = 5.0) -> Bench:
        benches: list[Bench] = []

        async def scene() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, JumpingLoop)
            monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=loop.time))
            benches.append(Bench(loop, deadline_sec))
            await scenario(benches[0])

        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(scene())
        return benches[0]

    return played


@pytest.fixture
def no_job_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand the engine only as many jobs as it has slots, so that the others stay in the queue."""
    monkeypatch.setattr(queue, "AHEAD", 0)
