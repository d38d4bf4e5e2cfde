"""Requests that the engine tokenizes for clients: bounded, answered once, and not lost with the engine."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.protocol.messages import Rejected, Tokenize, Tokenized
from worker_orcd.supervisor.supervisor import EngineState, Supervisor
from worker_orcd.worker.tokenizing import MAX_TOKENIZING, Tokenizing


class Desk:
    """A stand-in for the supervisor, which keeps what it would send to the engine."""

    def __init__(self) -> None:
        self.state = EngineState.READY
        self.handed: list[Tokenize] = []
        self.dropped: list[int] = []
        self.tokenizing = Tokenizing(cast("Supervisor", self))

    def prepare(self, message: Tokenize) -> None:
        """For the engine."""
        self.handed.append(message)

    def drop(self, run: int) -> None:
        """Of a prompt that is not wanted any more."""
        self.dropped.append(run)

    def asked(self, number: int = 1) -> list["asyncio.Task[Tokenized]"]:
        """So many requests, as tasks."""
        return [
            asyncio.ensure_future(self.tokenizing.prepare("a", "none", "cor", "owner")) for _ in range(number)
        ]


def run(scene: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    """Play it."""
    asyncio.run(scene(Desk()))


def test_each_request_gets_its_own_answer() -> None:
    """In whatever order the answers come; answers about jobs are not taken."""

    async def scene(desk: Desk) -> None:
        first, second = desk.asked(2)
        await asyncio.sleep(0)
        numbers = [message.run for message in desk.handed]
        assert all(number < 0 for number in numbers)
        assert not desk.tokenizing.answered(Tokenized(7, (1,), (b"x",)))
        assert desk.tokenizing.answered(Tokenized(numbers[1], (2,), (b"x",)))
        assert desk.tokenizing.answered(Rejected(numbers[0], "no", "prompt"))
        assert (await second).prompt == (2,)
        with pytest.raises(JobError) as caught:
            await first
        assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, "prompt")
        assert desk.dropped == []

    run(scene)


def test_few_wait_at_a_time() -> None:
    """One more request is refused; there is room again once one is answered."""

    async def scene(desk: Desk) -> None:
        waiting = desk.asked(MAX_TOKENIZING)
        await asyncio.sleep(0)
        with pytest.raises(JobError) as caught:
            await desk.asked()[0]
        assert (caught.value.code, caught.value.retry_after_sec) == (ErrorCode.QUEUE_FULL, 1)
        desk.tokenizing.answered(Tokenized(desk.handed[0].run, (1,), (b"x",)))
        await waiting[0]
        (one_more,) = desk.asked()
        await asyncio.sleep(0)
        for message in desk.handed:
            desk.tokenizing.answered(Tokenized(message.run, (1,), (b"x",)))
        await asyncio.gather(one_more, *waiting)

    run(scene)


def test_the_end_of_the_engine_ends_the_wait() -> None:
    """Without an engine a request is refused at once."""

    async def scene(desk: Desk) -> None:
        (waiting,) = desk.asked()
        await asyncio.sleep(0)
        desk.tokenizing.engine_lost()
        desk.state = EngineState.LOST
        for task in (waiting, desk.asked()[0]):
            with pytest.raises(JobError) as caught:
                await task
            assert (caught.value.code, caught.value.http_status) == (ErrorCode.ENGINE_LOST, 503)
        assert len(desk.handed) == 1

    run(scene)


def test_a_client_that_leaves_ends_the_preparing() -> None:
    """A conversation that takes long to render is not rendered to its end; a late answer is ignored."""

    async def scene(desk: Desk) -> None:
        (waiting,) = desk.asked()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        number = desk.handed[0].run
        assert desk.dropped == [number]
        assert desk.tokenizing.answered(Tokenized(number, (1,), (b"x",)))

    run(scene)
