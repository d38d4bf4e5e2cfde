"""An observer learns of everything that happens to a job, in the order in which it happens."""

import asyncio
import io
import random
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from tests.fakes import QUICK, execute
from tests.simulation.clock import VirtualLoop, virtual_time
from tests.simulation.engine import VirtualEngine, Weather
from worker_orcd.jobs.job import Job
from worker_orcd.narration import Narrator
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.worker.observer import Observer, StopRequested
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.streams import JobStream
from worker_orcd.worker.worker import Worker


class Notes(Observer):
    """Notes what happens to jobs."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def stop_requested(self, request: StopRequested) -> None:
        """Note the request, with the state of its target."""
        self.seen.append((request.target.state.value, request.job_id or ""))

    def ended(self, job: Job) -> None:
        """Note it."""
        self.seen.append(("ended", job.job_id))


class Play:
    """A worker with one virtual engine, which notes the stops it gets, too."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.notes = Notes()
        narrator = Narrator.configure("worker", log_format="json", stream=io.StringIO())
        self.worker = Worker(Policy(), self.launch, narrator, worker_id="w", model_path="m")
        self.worker.subscribe(self.notes)

    async def launch(self, listener: EngineListener) -> Engine:
        """Start the engine."""
        engine = VirtualEngine(listener, random.Random(1), Weather(), 100)
        stop = engine.stop

        def noted(run: int) -> None:
            self.notes.seen.append(("sent", str(run)))
            stop(run)

        engine.stop = noted  # type: ignore[method-assign]
        return engine

    def execute(self, job_id: str) -> JobStream:
        """Start a job of the group `g`."""
        (stream,) = self.worker.execute([execute(job_id, prompt=QUICK, group="g", max_tokens=300)], "c")
        return stream

    async def running(self, job_id: str) -> JobStream:
        """Start a job, and wait for its first token."""
        stream = self.execute(job_id)
        while stream.job.first_token_at is None:
            assert await stream.changed(60)
        return stream

    def run(self, scene: Coroutine[Any, Any, None]) -> list[tuple[str, str]]:
        """Play it on a ready worker. Returns the notes."""

        async def whole() -> None:
            self.worker.start()
            await self.worker.ready.wait()
            await scene

        self.loop.run_until_complete(whole())
        return self.notes.seen


@pytest.fixture
def play() -> Iterator[Play]:
    """In virtual time."""
    with virtual_time() as loop:
        asyncio.set_event_loop(loop)
        try:
            yield Play(loop)
            assert not loop.failures, loop.failures
        finally:
            loop.cancel_everything()
            asyncio.set_event_loop(None)


def test_the_engine_gets_all_stops_of_a_group_before_they_are_observed_and_ends_come_last(play: Play) -> None:
    """Each millisecond counts for the engine; and a log has the request before its outcome."""

    async def scene() -> None:
        await play.running("one")
        await play.running("two")
        play.execute("waits")
        play.worker.cancel_group("g", "c")

    assert play.run(scene())[:6] == [
        ("sent", "1"),
        ("sent", "2"),
        ("live", "one"),
        ("live", "two"),
        ("live", "waits"),
        ("ended", "waits"),
    ]


def test_a_cancel_is_observed_whatever_is_known_of_its_target(play: Play) -> None:
    """Live, being stopped, finished, unknown, or a group without a job."""

    async def scene() -> None:
        stream = await play.running("one")
        play.worker.cancel("one", "c")
        play.worker.cancel("one", "c")
        assert await stream.ended(play.loop.time() + 60)
        play.worker.cancel("one", "c")
        play.worker.cancel("two", "c")
        play.worker.cancel_group("none", "c")

    assert play.run(scene()) == [
        ("sent", "1"),
        ("live", "one"),
        ("stopping", "one"),
        ("ended", "one"),
        ("finished", "one"),
        ("unknown", "two"),
        ("unknown", ""),
    ]
