"""A fleet is used as one worker: what clients and operators see does not depend on the router. In virtual time."""

import asyncio
from typing import Any

import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time, text_of
from tests.fleet.world import Fleet, execute, read, running_fleet, tokens_seen
from worker_orcd.fleet.summary import merged_metrics
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End
from worker_orcd.narration import Listener

STORY: dict[str, Any] = {"seed": 7, "max_tokens": 60}
LONG_PROMPT = "x" * 600


def listeners(fleet: Fleet, owner: str = "", *, operator: bool = True) -> list[Listener]:
    """A listener to the log events at each router."""
    joined = [narrator.broadcast.join(owner, None, operator=operator) for narrator in fleet.narrators]
    return [one for one in joined if one is not None]


async def logged(listener: Listener, action: str) -> list[dict[str, Any]]:
    """All events of an action, when nothing more comes."""
    events: list[dict[str, Any]] = []
    async for batch in listener.listen(3.0):
        if not batch:
            return [event for event in events if event["action"] == action]
        events += [one.event for one in batch]
    raise AssertionError("the listener was closed")


@in_virtual_time
async def test_every_router_logs_where_each_job_went_and_why() -> None:
    """With a fresh prompt, a warm one, and after its worker's death; the death itself, too."""
    async with running_fleet() as fleet:
        everywhere = listeners(fleet)
        prompt = {"prompt": LONG_PROMPT, "template": "none"}
        await read(await execute(fleet.routers[0], "fresh", **STORY, **prompt))
        await asyncio.sleep(1.0)
        warm = await execute(fleet.routers[0], "warm", **STORY, **prompt)
        await tokens_seen(warm, 3)
        victim = fleet.holder("warm")
        so_far = warm.job.tokens_out
        victim.die()
        await read(warm)
        for listener in everywhere:
            routes = await logged(listener, "route")
            reported = [(it["job_id"], it["why"], it["warm_blocks"], it["requeued"]) for it in routes]
            assert reported[:2] == [("fresh", "least_loaded", 0, False), ("warm", "warm", 2, False)]
            assert reported[2][0] == "warm"
            assert reported[2][3] is True
            assert (routes[1]["worker_id"], routes[1]["router"]) == (victim.name, "router-0")
            assert routes[2]["worker_id"] != victim.name
            assert routes[2]["tokens_out"] >= so_far
            assert routes[0]["correlation_id"] == "cor-fresh"
        for listener, jobs in zip(listeners(fleet), (1, 0), strict=True):
            (event,) = await logged(listener, "worker_lost")
            assert (event["lost_worker"], event["jobs"]) == (victim.name, jobs)


@in_virtual_time
async def test_metrics_count_routes_at_the_worker_that_got_the_job() -> None:
    """So each router shows all of them."""
    async with running_fleet() as fleet:
        for n in range(6):
            await read(await execute(fleet.routers[n % 2], f"job-{n}", max_tokens=3))
        for router in fleet.routers:
            lines = (await router.metrics()).decode().splitlines()
            routed = [line for line in lines if line.startswith("worker_fleet_routes_total{")]
            assert sum(float(line.rpartition(" ")[2]) for line in routed) == 6
        assert merged_metrics([]) == b""


@in_virtual_time
async def test_a_cancel_of_a_job_that_is_not_live_is_logged_once() -> None:
    """As finished or unknown, and only for its owner."""
    async with running_fleet() as fleet:
        mine, others = listeners(fleet, "anna", operator=False), listeners(fleet, "berta", operator=False)
        await read(await execute(fleet.routers[0], "done", owner="anna", max_tokens=3))
        await fleet.routers[1].cancel("done", "cor-1", "anna")
        await fleet.routers[1].cancel("never", "cor-2", "anna")
        for listener in mine:
            reported = [(it["job_id"], it["known"], it["level"]) for it in await logged(listener, "cancel")]
            assert sorted(reported) == [("done", "finished", "WARN"), ("never", "unknown", "WARN")]
        for listener in others:
            assert await logged(listener, "cancel") == []


@pytest.mark.parametrize("worker_dies", [False, True])
@in_virtual_time
async def test_a_deleted_job_is_gone_at_every_router(worker_dies: bool) -> None:
    """Also the copies that routers keep, and also when its worker is dead."""
    async with running_fleet() as fleet:
        one, other = fleet.routers
        await read(await execute(one, "job", max_tokens=30))
        (node,) = [node for node in fleet.nodes if node.worker.dispatcher.tracker.ended_job("job")]
        followed = await other.stream_of("job")
        assert [event for event in followed.job.events if isinstance(event, End)]
        if worker_dies:
            node.die()
            await asyncio.sleep(0.1)
            followed = await one.stream_of("job")
        await (one if worker_dies else other).drop_events(followed.job)
        await asyncio.sleep(0.1)
        for router in fleet.routers:
            with pytest.raises(JobError, match="no job") as refused:
                await router.stream_of("job")
            assert refused.value.code is ErrorCode.JOB_NOT_FOUND


@in_virtual_time
async def test_a_job_at_a_worker_that_does_not_answer_is_not_reported_as_unknown() -> None:
    """The client may try again: 503, not 404. When the worker answers again, the job is found."""
    async with running_fleet() as fleet:
        await read(await execute(fleet.routers[0], "job", max_tokens=3))
        (node,) = [node for node in fleet.nodes if node.worker.dispatcher.tracker.ended_job("job")]
        node.thawed.clear()
        await asyncio.sleep(3.0)
        for look in (fleet.routers[1].stream_of("job"), fleet.routers[1].record("job", "")):
            with pytest.raises(JobError) as refused:
                await look
            assert (refused.value.code, refused.value.http_status) == (ErrorCode.ENGINE_LOST, 503)
        node.thawed.set()
        await asyncio.sleep(3.0)
        assert (await fleet.routers[1].stream_of("job")).job.job_id == "job"
        with pytest.raises(JobError, match="no job"):
            await fleet.routers[1].stream_of("never")


@in_virtual_time
async def test_a_worker_whose_engine_is_lost_for_good_gives_its_jobs_to_others() -> None:
    """Their streams stay open and whole; it gets no new jobs."""
    async with running_fleet() as fleet:
        undisturbed = await read(await execute(fleet.routers[0], "undisturbed", **STORY))
        streams = [await execute(fleet.routers[n % 2], f"job-{n}", **STORY) for n in range(6)]
        reading = [asyncio.ensure_future(read(stream)) for stream in streams]
        await tokens_seen(streams[-1], 5)
        victim = fleet.nodes[0]
        moved = set(victim.live)
        assert moved
        victim.lose_engine_for_good()
        ends = await asyncio.gather(*reading)
        assert victim.death.done()
        assert {text_of(events) for events in ends} == {text_of(undisturbed)}
        assert {stream.job.job_id for stream in streams if stream.job.requeues} == moved
        await asyncio.gather(*(execute(fleet.routers[0], f"later-{n}", max_tokens=400) for n in range(4)))
        assert not any(job.startswith("later") for job in victim.live)


@in_virtual_time
async def test_a_client_that_asks_for_the_end_drains_all_workers() -> None:
    """At any router. Jobs may finish, no new ones are accepted, and who started the fleet learns of it."""
    async with running_fleet() as fleet:
        asked = [asyncio.ensure_future(node.host.shutdown_asked()) for node in fleet.nodes]
        short = await execute(fleet.routers[0], "short", max_tokens=10)
        long = await execute(fleet.routers[0], "long", max_tokens=400)
        fleet.routers[1].shut_down("POST /shutdown")
        await asyncio.sleep(0.1)
        assert {router.health(operator=True, private_load=False).status for router in fleet.routers} == {
            "draining"
        }
        for router in fleet.routers:
            with pytest.raises(JobError) as refused:
                await execute(router, "late")
            assert refused.value.code is ErrorCode.DRAINING
        assert isinstance((await read(short))[-1], End)
        assert cancelled(await read(long), "shutdown")
        assert [await asyncio.wait_for(answer, 1.0) for answer in asked] == ["POST /shutdown"] * 3
