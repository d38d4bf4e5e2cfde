"""A reader's waits for changes of jobs, which share one timer; the clock is the loop's."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker_orcd.jobs.events import Token
from worker_orcd.jobs.job import Job
from worker_orcd.worker.streams import Changes, JobStream, KeepAlive, read_together


def stream_of(*texts: str) -> JobStream:
    """The stream of a live job with these tokens."""
    events = [Token(text, place) for place, text in enumerate(texts)]
    return JobStream(cast("Job", SimpleNamespace(events=events, live=True)))


async def unchanged(changes: Changes, sec: float) -> float:
    """Seconds that a wait took that sees no change."""
    began = time.monotonic()
    assert not await asyncio.wait_for(changes.next(sec), 10)
    return time.monotonic() - began


@pytest.mark.parametrize("timeouts", [(0.02, 0.06), (0.06, 0.02), (0.03, 0.0, 0.03)])
def test_each_wait_has_its_own_timeout(timeouts: tuple[float, ...]) -> None:
    """Longer or shorter than the one before."""

    async def waits() -> list[float]:
        with Changes([stream_of()]) as changes:
            return [await unchanged(changes, timeout) for timeout in timeouts]

    for took, timeout in zip(asyncio.run(waits()), timeouts, strict=True):
        assert took >= timeout - 0.005


@pytest.mark.parametrize(("first", "second"), [(0.03, 0.1), (60, 0.02)])
def test_a_wait_after_a_change_has_its_own_timeout(first: float, second: float) -> None:
    """The timer of the wait before it may still run: it neither ends this one early nor holds it up."""

    async def waits() -> float:
        stream = stream_of()
        with Changes([stream]) as changes:
            asyncio.get_running_loop().call_soon(stream.wake)
            assert await changes.next(first)
            return await unchanged(changes, second)

    assert asyncio.run(waits()) >= second - 0.005


def test_every_waiting_reader_is_woken() -> None:
    """By one change, and none of them is kept after it."""

    async def waits() -> list[bool]:
        stream = stream_of()
        readers = [asyncio.create_task(stream.changed(60)) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(stream.waiting) == len(readers)
        stream.wake()
        seen = await asyncio.wait_for(asyncio.gather(*readers), 10)
        assert not stream.waiting
        return seen

    assert asyncio.run(waits()) == [True] * 3


def test_events_of_several_jobs_come_as_one_batch() -> None:
    """A reader of several jobs writes once for a step, not once for each of them."""
    streams = [stream_of("a"), stream_of("b", "c")]

    async def first() -> list[tuple[int, str]]:
        batches = cast("Any", read_together(streams, KeepAlive(60)))
        batch = await anext(batches)
        await batches.aclose()
        return [(index, event.t) for index, _, event in batch]

    assert asyncio.run(first()) == [(0, "a"), (1, "b"), (1, "c")]
    assert not any(stream.waiting for stream in streams)
