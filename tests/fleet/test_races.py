"""Moments in which several parts of a fleet learn of the same thing in an unlucky order (G17). In virtual time."""

import asyncio
from typing import Any

import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time
from tests.fleet.world import Fleet, Node, execute, read, running_fleet, tokens_seen
from worker_orcd.fleet.keepers import keepers_of
from worker_orcd.fleet.wire import ServeNote
from worker_orcd.jobs.events import End


def keepers(fleet: Fleet, job_id: str) -> list[Node]:
    """The workers in the order in which they keep an id."""
    nodes = {node.name: node for node in fleet.nodes}
    return [nodes[name] for name in keepers_of(("", job_id), list(nodes))]


def id_not_kept_by(fleet: Fleet, node: Node) -> str:
    """A job id of which a worker is no keeper."""
    ids = (f"job-{n}" for n in range(50))
    return next(job_id for job_id in ids if node not in keepers(fleet, job_id)[:2])


@in_virtual_time
async def test_a_job_goes_on_while_its_client_reads_at_any_router() -> None:
    """The dead router's place was taken by one whose reader has left; the client reads at a third one."""
    async with running_fleet(routers=3, workers=3) as fleet:
        first, second, third = fleet.routers
        await tokens_seen(await execute(first, "job", max_tokens=400), 3)
        observed = await second.stream_of("job")
        observed.join()
        fleet.kill_router(first)
        await asyncio.sleep(0.5)
        stream = await third.stream_of("job")
        stream.join()
        reading = asyncio.ensure_future(read(stream))
        second.follower_left(observed)
        assert isinstance((await reading)[-1], End)


@in_virtual_time
async def test_a_router_that_was_cut_off_keeps_its_job_when_the_other_ones_reader_leaves() -> None:
    """Its client has read on there all the time."""
    async with running_fleet(routers=2, workers=3) as fleet:
        first, second = fleet.routers
        stream = await execute(first, "job", max_tokens=400)
        await tokens_seen(stream, 3)
        observed = await second.stream_of("job")
        observed.join()
        for connection in fleet.connections[first.name]:
            connection.cut = True
        await asyncio.sleep(4.5)
        for connection in fleet.connections[first.name]:
            connection.cut = False
        reading = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0.3)
        second.follower_left(observed)
        assert isinstance((await reading)[-1], End)


@in_virtual_time
async def test_a_worker_that_dies_while_the_second_keeper_is_asked_loses_no_job() -> None:
    """It has accepted the job, and its router does not know yet."""
    async with running_fleet(routers=1, workers=4) as fleet:
        job_id = id_not_kept_by(fleet, fleet.nodes[0])
        slow = keepers(fleet, job_id)[1]
        slow.thawed.clear()
        executing = asyncio.ensure_future(execute(fleet.routers[0], job_id, max_tokens=100))
        await asyncio.sleep(0.3)
        holder = fleet.holder(job_id)
        assert holder is not slow
        holder.die()
        await asyncio.sleep(0.2)
        slow.thawed.set()
        async with asyncio.timeout(30.0):
            assert isinstance((await read(await executing))[-1], End)


@pytest.mark.parametrize("worker_dies", [True, False])
@in_virtual_time
async def test_a_router_that_missed_that_it_serves_a_job_learns_it_later(worker_dies: bool) -> None:
    """The answer to its poll was lost. It hands the job over when the worker dies, and stops it when nobody reads."""
    async with running_fleet(routers=2, workers=3) as fleet:
        first, second = fleet.routers
        await tokens_seen(await execute(first, "job", max_tokens=400), 3)
        stream = await second.stream_of("job")
        stream.join()
        reading = asyncio.ensure_future(read(stream))
        holder = fleet.holder("job")
        holder.engines[0]._hand.model.decode_ms = 40.0
        lost = asyncio.Event()
        for connection in fleet.connections[second.name]:

            async def call(method: str, *arguments: Any, served: Any = connection.call) -> Any:
                answer = await served(method, *arguments)
                serve = method == "poll" and any(isinstance(note, ServeNote) for note in answer.notes)
                if serve and not lost.is_set():
                    lost.set()
                    await asyncio.sleep(10.0)
                return answer

            connection.call = call  # type: ignore[method-assign]
        fleet.kill_router(first)
        await lost.wait()
        await asyncio.sleep(2.5)
        if worker_dies:
            holder.die()
            assert isinstance((await reading)[-1], End)
        else:
            second.follower_left(stream)
            assert cancelled(await reading, "disconnect")


@in_virtual_time
async def test_a_job_that_needs_no_client_is_served_by_the_next_router_that_comes() -> None:
    """No other one was there when its router died."""
    async with running_fleet(routers=1, workers=3) as fleet:
        stream = await execute(fleet.routers[0], "job", on_disconnect="continue", max_tokens=400)
        await tokens_seen(stream, 3)
        fleet.kill_router(fleet.routers[0])
        await asyncio.sleep(4.5)
        router = fleet.add_router()
        await asyncio.sleep(1.5)
        fleet.holder("job").die()
        await asyncio.sleep(1.0)
        assert isinstance((await read(await router.stream_of("job")))[-1], End)


@in_virtual_time
async def test_a_later_try_of_a_cancel_reaches_no_younger_use_of_the_id() -> None:
    """The cancel was for a refused request, and a keeper did not answer at its first try."""
    async with running_fleet(routers=2, workers=4) as fleet:
        router = fleet.routers[0]
        job_id = id_not_kept_by(fleet, fleet.nodes[0])
        router.refused(job_id)
        await asyncio.sleep(0.3)
        slow = keepers(fleet, job_id)[1]
        slow.thawed.clear()
        await router.cancel(job_id, "cor")
        events = await read(await execute(router, job_id, max_tokens=100))
        slow.thawed.set()
        assert isinstance(events[-1], End)


@in_virtual_time
async def test_a_cancel_is_not_lost_while_a_job_waits_for_another_worker() -> None:
    """The only worker has died; its successor keeps all ids and knows none of them."""
    async with running_fleet(routers=2, workers=1) as fleet:
        stream = await execute(fleet.routers[0], "job", max_tokens=400)
        await tokens_seen(stream, 3)
        fleet.nodes[0].die()
        await asyncio.sleep(0.1)
        cancelling = asyncio.ensure_future(fleet.routers[1].cancel("job", "cor"))
        await asyncio.sleep(0.3)
        fleet.add_worker()
        await cancelling
        assert cancelled(await read(stream))


@in_virtual_time
async def test_a_cancel_that_overtakes_its_job_is_not_lost_at_a_router_that_knows_no_worker() -> None:
    """It is remembered as soon as the router has found the workers."""
    async with running_fleet(routers=1, workers=3) as fleet:
        fresh = fleet.add_router(finds=False)
        cancelling = asyncio.ensure_future(fresh.cancel("job", "cor"))
        await asyncio.sleep(0.5)
        fleet.find()
        await cancelling
        assert cancelled(await read(await execute(fleet.routers[0], "job", max_tokens=50)))
