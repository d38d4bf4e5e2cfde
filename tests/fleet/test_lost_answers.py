"""Nothing is lost or done twice when the answer to a call of a worker is lost (G17). In virtual time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time, text_of
from tests.fleet.world import Fleet, execute, read, running_fleet, tokens_seen
from worker_orcd.fleet.peers import MAX_LOST, Peer, PeerLost, Peers, Remote
from worker_orcd.fleet.wire import News
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.events import End
from worker_orcd.jobs.lifecycle import State


def lose(fleet: Fleet, lost: Callable[[str, Any], bool]) -> list[str]:
    """Lose answers and make their calls again, as `RayPeer` does when Ray cannot say whether a call has arrived.
    Returns the methods of these calls."""
    methods: list[str] = []
    for connections in fleet.connections.values():
        for connection in connections:

            async def call(method: str, *arguments: Any, served: Any = connection.call) -> Any:
                answer = await served(method, *arguments)
                if lost(method, answer):
                    methods.append(method)
                    await asyncio.sleep(0.25)
                    answer = await served(method, *arguments)
                return answer

            connection.call = call  # type: ignore[method-assign]
    return methods


def ends(news: News) -> bool:
    """Whether it has the end of a job."""
    return any(update.values[0] is State.ENDED for update in news.updates)


@in_virtual_time
async def test_a_job_whose_accepting_answer_is_lost_runs_once() -> None:
    """Also if it has ended when it is asked for again."""
    async with running_fleet(routers=1, workers=3) as fleet:
        methods = lose(fleet, lambda method, _: method == "execute")
        for max_tokens in (2, 60):
            events = await read(await execute(fleet.routers[0], f"job-{max_tokens}", max_tokens=max_tokens))
            assert isinstance(events[-1], End)
            assert len(text_of(events)) > 0
        assert methods == ["execute", "execute"]
        records = [node.worker.dispatcher.tracker.records("", 10) for node in fleet.nodes]
        assert sum(map(len, records)) == 2


@in_virtual_time
async def test_no_news_is_lost_with_the_answer_to_a_poll() -> None:
    """Not the end of a job, nor any token before it."""
    async with running_fleet(routers=1, workers=3) as fleet:
        methods = lose(
            fleet, lambda method, answer: method == "poll" and (ends(answer) or fleet.chance.random() < 0.5)
        )
        for n in range(5):
            events = await read(await execute(fleet.routers[0], f"job-{n}", max_tokens=20))
            assert isinstance(events[-1], End)
            text_of(events)
        assert len(methods) > 10


@in_virtual_time
async def test_a_poll_that_comes_late_takes_no_news() -> None:
    """Its router has given it up, and waits for the answer to its next one."""
    async with running_fleet(routers=1, workers=1) as fleet:
        (node,) = fleet.nodes
        seen = (await node.host.poll("another", 1.0, 0)).number
        late = asyncio.ensure_future(node.host.poll("another", 5.0, seen))
        await asyncio.sleep(0.1)
        again = asyncio.ensure_future(node.host.poll("another", 5.0, seen))
        await read(await execute(fleet.routers[0], "job", max_tokens=2))
        node.host.log({"action": "seen"}, None)
        assert (await again).number == (await late).number == seen + 1
        assert await again == await late


@in_virtual_time
async def test_a_deleted_job_is_gone_at_a_router_that_was_cut_off() -> None:
    """It learns of it when it polls again."""
    async with running_fleet(routers=2, workers=3) as fleet:
        one, other = fleet.routers
        await read(await execute(one, "job", max_tokens=5))
        stream = await other.stream_of("job")
        for cut_sec in (1.0, 4.0):
            for connection in fleet.connections[one.name]:
                connection.cut = True
            await asyncio.sleep(cut_sec)
        await other.drop_events(stream.job)
        for connection in fleet.connections[one.name]:
            connection.cut = False
        await asyncio.sleep(3.0)
        with pytest.raises(JobError, match="no job"):
            await one.stream_of("job")


@in_virtual_time
async def test_a_reader_misses_nothing_when_an_earlier_ones_call_is_given_up() -> None:
    """The job ends in the moment between, before the worker's answer to the second reader has come."""
    async with running_fleet(routers=2, workers=1) as fleet:
        one, other = fleet.routers
        stream = await execute(one, "job", max_tokens=400)
        await tokens_seen(stream, 3)
        gone = asyncio.Event()

        async def call(
            method: str, *arguments: Any, served: Any = fleet.connections[other.name][0].call
        ) -> Any:
            answer = await served(method, *arguments)
            if method == "follow":
                await gone.wait()
            return answer

        fleet.connections[other.name][0].call = call  # type: ignore[method-assign]
        first = asyncio.ensure_future(other.stream_of("job"))
        await asyncio.sleep(1.5)
        second = asyncio.ensure_future(other.stream_of("job"))
        await asyncio.sleep(0.1)
        await one.cancel("job", "cor")
        await read(stream)
        await asyncio.sleep(0.6)
        with pytest.raises(JobError, match="does not answer"):
            await first
        gone.set()
        async with asyncio.timeout(60.0):
            assert cancelled(await read(await second))


class Dead:
    """A worker that is dead."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Nobody answers."""
        raise PeerLost

    def send(self, method: str, *arguments: Any) -> None:
        """Nobody listens."""


class Losses:
    """Counts the workers that a router finds dead."""

    number = 0

    def joined(self) -> None:
        """Not looked at."""

    def news(self, remote: Remote, news: News) -> None:
        """Not looked at."""

    def back(self, remote: Remote) -> None:
        """Not looked at."""

    def lost(self, remote: Remote) -> None:
        """Count it."""
        self.number += 1

    def failed(self, remote: Remote, error: Exception) -> None:
        """Does not happen."""
        raise error


@in_virtual_time
async def test_each_dead_worker_is_found_once() -> None:
    """However many are listed; those that are listed no more are forgotten in the end."""
    losses = Losses()
    peers = Peers("router", losses)
    known: dict[str, Peer] = {f"worker-{n}": Dead() for n in range(MAX_LOST + 10)}
    for _ in range(20):
        peers.add(known)
        await asyncio.sleep(0.5)
    assert losses.number == len(known)
    peers.add({})
    assert sum(peers.has_lost(name) for name in known) == MAX_LOST
    peers.close()
