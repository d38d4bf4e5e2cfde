"""No job runs at a worker without a router that has it, also when messages are lost (G17). In virtual time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time
from tests.fleet.test_races import id_not_kept_by
from tests.fleet.world import Connection, Fleet, Node, execute, read, running_fleet, tokens_seen
from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.events import End, Error


@contextmanager
def cut(connections: list[Connection]) -> Iterator[None]:
    """Nothing that is sent on these connections arrives, nor do answers to what was sent before."""
    for connection in connections:
        connection.cut = True
    yield
    for connection in connections:
        connection.cut = False


def connections_of(fleet: Fleet, node: Node) -> list[Connection]:
    """All routers' connections with a worker."""
    every = [connection for connections in fleet.connections.values() for connection in connections]
    return [connection for connection in every if connection._node is node]


@pytest.mark.parametrize("cancel", [True, False])
@pytest.mark.parametrize("on_disconnect", ["cancel", "continue"])
@in_virtual_time
async def test_a_withdrawn_job_stops(cancel: bool, on_disconnect: str) -> None:
    """A worker's answer to `execute` and all that the router sends it then are lost; the job runs at another one."""
    async with running_fleet(routers=1, workers=4) as fleet:
        (router,), node = fleet.routers, fleet.nodes[0]
        job_id = id_not_kept_by(fleet, node)
        (link,) = connections_of(fleet, node)
        served = link.call

        async def call(method: str, *arguments: Any) -> Any:
            answering = asyncio.ensure_future(served(method, *arguments))
            if method in ("stop", "disown"):
                answering.cancel()
            if method in ("execute", "stop", "disown"):
                await asyncio.sleep(60.0)
            return await answering

        link.call = call  # type: ignore[method-assign]
        stream = await execute(router, job_id, max_tokens=400, on_disconnect=on_disconnect)
        await asyncio.sleep(1.5)
        assert job_id in node.live
        link.call = served  # type: ignore[method-assign]
        await asyncio.sleep(2.5)
        assert job_id not in node.live
        if cancel:
            await router.cancel(job_id, "cor")
            assert cancelled(await read(stream))
            assert not any(node.live for node in fleet.nodes)
        else:
            assert isinstance((await read(stream))[-1], End)


@pytest.mark.parametrize(("arrives_sec", "accepted"), [(1.0, 0), (7.0, 1)])
@in_virtual_time
async def test_a_withdrawn_job_that_arrives_late_stops(arrives_sec: float, accepted: int) -> None:
    """Its message is still on its way when the router has withdrawn the job, and that has been confirmed. The worker
    remembers it for five seconds; later the router has the job stopped when it learns of it."""
    async with running_fleet(routers=1, workers=4) as fleet:
        (router,), node = fleet.routers, fleet.nodes[0]
        job_id = id_not_kept_by(fleet, node)
        node.held["execute"] = asyncio.Event()
        stream = await execute(router, job_id, max_tokens=400)
        await asyncio.sleep(arrives_sec)
        node.held["execute"].set()
        await asyncio.sleep(0.5)
        assert len(node.worker.dispatcher.tracker.records("", 10)) == accepted
        assert not node.live
        assert isinstance((await read(stream))[-1], End)


@pytest.mark.parametrize("cut_sec", [1.5, 6.0])
@in_virtual_time
async def test_a_reported_cancel_is_carried_out_after_a_cut(cut_sec: float) -> None:
    """Nobody can reach the job's worker for a while, its client has learnt of the end before."""
    async with running_fleet(routers=2, workers=3) as fleet:
        stream = await execute(fleet.routers[0], "job", max_tokens=400, on_disconnect="continue")
        await tokens_seen(stream, 3)
        holder = fleet.holder("job")
        holder.engines[0]._hand.model.decode_ms = 100.0
        with cut(connections_of(fleet, holder)):
            await fleet.routers[1].cancel("job", "cor")
            await asyncio.sleep(cut_sec)
        assert cancelled(await read(stream))
        await asyncio.sleep(3.0)
        assert not holder.live


@in_virtual_time
async def test_a_cancel_is_carried_out_after_a_cut_although_the_jobs_router_is_dead() -> None:
    """The router that accepted it sends it again."""
    async with running_fleet(routers=2, workers=4) as fleet:
        job_id = id_not_kept_by(fleet, fleet.nodes[0])
        one, other = fleet.routers
        stream = await execute(one, job_id, max_tokens=400, on_disconnect="continue")
        await tokens_seen(stream, 3)
        holder = fleet.holder(job_id)
        assert holder is fleet.nodes[0]
        holder.engines[0]._hand.model.decode_ms = 100.0
        with cut(connections_of(fleet, holder)):
            await other.cancel(job_id, "cor")
            fleet.kill_router(one)
            await asyncio.sleep(9.0)
        await asyncio.sleep(3.0)
        assert not holder.live


@in_virtual_time
async def test_a_job_that_a_router_inherits_from_a_silent_worker_goes_on() -> None:
    """The worker says that the router serves the job, and then answers nothing for three seconds."""
    async with running_fleet(routers=2, workers=3) as fleet:
        one, other = fleet.routers
        await tokens_seen(await execute(one, "job", max_tokens=400, on_disconnect="continue"), 3)
        holder = fleet.holder("job")
        holder.held["follow"] = asyncio.Event()
        fleet.kill_router(one)
        await asyncio.sleep(7.0)
        holder.held["follow"].set()
        await asyncio.sleep(0.1)
        assert isinstance((await read(await other.stream_of("job")))[-1], End)


@in_virtual_time
async def test_a_job_at_a_frozen_worker_times_out() -> None:
    """Its router ends it for its client when the worker says nothing; and so does one that has inherited it."""
    async with running_fleet(routers=2, workers=3) as fleet:
        loop, (one, other) = asyncio.get_running_loop(), fleet.routers
        asked: dict[str, Any] = {"max_tokens": 400, "timeout_ms": 6500}
        began = loop.time()
        own = await execute(one, "own", **asked)
        inherited = await execute(one, "inherited", on_disconnect="continue", **asked)
        await tokens_seen(inherited, 3)
        fleet.kill_router(one)
        await asyncio.sleep(4.5)
        followed = await other.stream_of("inherited")
        served = await execute(other, "served", **asked | {"timeout_ms": 2000})
        await tokens_seen(served, 3)
        for node in fleet.nodes:
            node.thawed.clear()
        assert own.job.live
        for stream in (served, followed):
            last = (await read(stream))[-1]
            assert isinstance(last, Error)
            assert last.code is ErrorCode.INFERENCE_TIMEOUT
        assert loop.time() - began < 6.5 + 5.0
