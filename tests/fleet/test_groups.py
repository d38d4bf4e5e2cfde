"""Stops of jobs that share a name go the way of a cancel by id: groups, superseding, requests of many jobs (G17).

In virtual time.
"""

import asyncio
import random
from typing import Any

import httpx2
import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time
from tests.fleet.test_races import id_not_kept_by, keepers
from tests.fleet.world import Fleet, execute, read, running_fleet, tokens_seen
from worker_orcd.api.app import create_app
from worker_orcd.jobs.events import End
from worker_orcd.jobs.request import ExecuteRequest
from worker_orcd.worker.streams import JobStream

FOREVER = 400
"""Tokens: eight seconds."""


class Part(ExecuteRequest):
    """One job of a request, whose id is before the dot."""

    @property
    def part_of(self) -> str | None:
        """The request."""
        return self.job_id.partition(".")[0]


async def parts(fleet: Fleet, *job_ids: str, max_tokens: int = FOREVER) -> list[JobStream]:
    """Start jobs of one request at the first router."""
    given = {"prompt": '{"token_ms": 0, "row_ms": 0}', "ignore_eos": True, "max_tokens": max_tokens}
    requests = [Part.of(job_id=job_id, **given) for job_id in job_ids]
    streams = await fleet.routers[0].execute(requests, "cor")
    for stream in streams:
        stream.join()
    return streams


async def ended_in(stream: JobStream, reason: str = "client") -> float:
    """Seconds until a job has ended for a reason."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(30.0):
        assert cancelled(await read(stream), reason), stream.job.terminal
    return loop.time() - began


@in_virtual_time
async def test_group_between_workers() -> None:
    """A job whose worker has died, and which another router serves, is stopped before a worker comes."""
    async with running_fleet(workers=1) as fleet:
        stream = await execute(fleet.routers[0], "job", group="g", max_tokens=FOREVER)
        await tokens_seen(stream, 3)
        fleet.nodes[0].die()
        await asyncio.sleep(0.2)
        await fleet.routers[1].cancel_group("g", "cor")
        await asyncio.sleep(0.2)
        fleet.add_worker()
        await ended_in(stream)


@pytest.mark.parametrize("router", [0, 1])
@in_virtual_time
async def test_group_at_a_frozen_worker(router: int) -> None:
    """Its jobs end within five seconds, those of other workers at once, and the worker stops them when it thaws."""
    async with running_fleet(workers=3) as fleet:
        streams = [
            await execute(fleet.routers[0], f"job-{n}", group="g", max_tokens=FOREVER) for n in range(3)
        ]
        await tokens_seen(streams[-1], 3)
        frozen = fleet.holder("job-0")
        frozen.thawed.clear()
        await fleet.routers[router].cancel_group("g", "cor")
        assert max([await ended_in(stream) for stream in streams[1:]]) < 0.1
        assert await ended_in(streams[0]) < 5.0
        frozen.thawed.set()
        await asyncio.sleep(0.5)
        assert not frozen.live


@in_virtual_time
async def test_group_spares_younger_jobs() -> None:
    """Also when a worker that does not answer has the cancel sent again, and gets it late."""
    async with running_fleet(workers=3) as fleet:
        await execute(fleet.routers[0], "old", group="g", max_tokens=FOREVER)
        fleet.holder("old").thawed.clear()
        await fleet.routers[1].cancel_group("g", "cor")
        young = await execute(fleet.routers[0], "young", group="g", max_tokens=200)
        await asyncio.sleep(3.0)
        fleet.nodes[0].thawed.set()
        assert isinstance((await read(young))[-1], End)


@in_virtual_time
async def test_supersede_at_a_frozen_worker() -> None:
    """The old job ends within five seconds, and names the new one."""
    async with running_fleet() as fleet:
        old = await execute(fleet.routers[0], "old", supersedes="k", max_tokens=FOREVER)
        await tokens_seen(old, 3)
        fleet.holder("old").thawed.clear()
        await asyncio.sleep(2.5)
        new = await execute(fleet.routers[1], "new", supersedes="k", max_tokens=3)
        assert await ended_in(old, "superseded") < 5.0
        assert old.job.stop is not None
        assert old.job.stop.superseded_by == "new"
        assert isinstance((await read(new))[-1], End)


@in_virtual_time
async def test_supersede_between_workers() -> None:
    """The old job's worker has died, and no other one has accepted it."""
    async with running_fleet(workers=2) as fleet:
        old = await execute(fleet.routers[0], "old", supersedes="k", max_tokens=FOREVER)
        await tokens_seen(old, 3)
        held = asyncio.Event()
        for node in fleet.nodes:
            node.held["execute"] = held
        fleet.holder("old").die()
        await asyncio.sleep(0.2)
        new = asyncio.ensure_future(execute(fleet.routers[1], "new", supersedes="k", max_tokens=5))
        await asyncio.sleep(0.2)
        held.set()
        assert isinstance((await read(await new))[-1], End)
        await ended_in(old, "superseded")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pause_ms", [0.0, 1.0, 10.0])
@in_virtual_time
async def test_the_last_of_several_superseding_jobs_survives(seed: int, pause_ms: float) -> None:
    """They come within a few milliseconds, through two routers, so that they reach the workers in another order."""
    async with running_fleet(seed=seed) as fleet:
        chance, prompt = random.Random(seed), '{"token_ms": 5, "row_ms": 0}'

        async def later(number: int) -> JobStream:
            await asyncio.sleep(chance.random() * pause_ms / 1000)
            router = chance.choice(fleet.routers)
            return await execute(router, f"job-{number}", prompt, supersedes="k", max_tokens=9)

        streams = await asyncio.gather(*map(later, range(8)))
        ends = {stream.job.job_id: (await read(stream))[-1] for stream in streams}
        last = max((stream.job for stream in streams), key=lambda job: job.precedence)
        assert [job_id for job_id, end in ends.items() if isinstance(end, End)] == [last.job_id]
        assert all(stream.job.stop for stream in streams if stream.job is not last)


@in_virtual_time
async def test_a_job_whose_cancel_came_first_supersedes_none() -> None:
    """Neither at its worker nor at others."""
    async with running_fleet() as fleet:
        old = [await execute(fleet.routers[0], f"old-{n}", max_tokens=FOREVER) for n in range(2)]
        kept = await execute(fleet.routers[0], "kept", supersedes="k", max_tokens=60)
        await fleet.routers[1].cancel("new", "cor")
        assert cancelled(await read(await execute(fleet.routers[0], "new", supersedes="k")))
        assert isinstance((await read(kept))[-1], End)
        assert all(stream.job.live for stream in old)


@in_virtual_time
async def test_choices_that_go_on_elsewhere_do_not_supersede_each_other() -> None:
    """Though each is handed over alone when their worker has died."""
    async with running_fleet(workers=2) as fleet:
        given = {"prompt": '{"token_ms": 20, "row_ms": 0}', "ignore_eos": True, "max_tokens": 60}
        requests = [ExecuteRequest.of(job_id=f"choice-{n}", supersedes="k", **given) for n in range(3)]
        streams = await fleet.routers[0].execute(requests, "cor")
        for stream in streams:
            stream.join()
        await tokens_seen(streams[-1], 5)
        fleet.holder("choice-0").die()
        assert all([isinstance((await read(stream))[-1], End) for stream in streams])


@in_virtual_time
async def test_waiting_job_between_workers() -> None:
    """It has no event, as it waits for a slot, when its worker dies; a cancel ends it at once."""
    async with running_fleet(workers=1) as fleet:
        streams = [await execute(fleet.routers[0], f"job-{n}", max_tokens=FOREVER) for n in range(6)]
        await tokens_seen(streams[0], 3)
        assert not streams[5].job.events
        fleet.nodes[0].die()
        await asyncio.sleep(0.2)
        for number in (5, 0):
            await fleet.routers[0].cancel(f"job-{number}", "cor")
            assert await ended_in(streams[number]) < 0.1


@pytest.mark.parametrize(("workers", "inputs", "pause_sec"), [(1, 100, 1.2), (4, 300, 1.2), (4, 100, 0.1)])
@in_virtual_time
async def test_batch_of_embeddings(workers: int, inputs: int, pause_sec: float) -> None:
    """A cancel through another router reaches all inputs, also when the first one's job has ended."""
    async with running_fleet(workers=workers) as fleet:
        for node in fleet.nodes:
            node.engines[0]._hand.model.prefill_row_ms = 2.0
        app = create_app(fleet.routers[0], fleet.narrators[0], lambda _: None)
        given: dict[str, Any] = {"json": {"input": ["text " * 10] * inputs}, "headers": {"X-Job-Id": "batch"}}
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1"
        ) as http:
            asking = asyncio.ensure_future(http.post("/v1/embeddings", **given))
            await asyncio.sleep(pause_sec)
            assert not asking.done()
            assert any("batch" in node.live for node in fleet.nodes) is (pause_sec < 1.0)
            async with asyncio.timeout(0.3):
                await fleet.routers[1].cancel("batch", "cor")
                assert (await asking).status_code == 400
            await asyncio.sleep(1.0)  # A step of this engine goes on.
            assert not any(node.live for node in fleet.nodes)


@in_virtual_time
async def test_parts_whose_request_has_new_keepers() -> None:
    """Its first job has ended, and its keepers have died, one after the other."""
    async with running_fleet(workers=5) as fleet:
        name = id_not_kept_by(fleet, fleet.nodes[0])
        (first,) = await parts(fleet, name, max_tokens=2)
        assert isinstance((await read(first))[-1], End)
        streams = await parts(fleet, f"{name}.1", f"{name}.2")
        for keeper in keepers(fleet, name)[:2]:
            keeper.die()
            await asyncio.sleep(1.0)
        await fleet.routers[1].cancel(name, "cor")
        assert max([await ended_in(stream) for stream in streams]) < 0.1


@in_virtual_time
async def test_parts_whose_cancels_router_dies() -> None:
    """Only the keepers of the request's id have got the cancel by then."""
    async with running_fleet(workers=4) as fleet:
        (first,) = await parts(fleet, "batch", max_tokens=2)
        assert isinstance((await read(first))[-1], End)
        streams = await parts(fleet, "batch.1", "batch.2")
        for node in fleet.nodes:
            node.held["stop_shared"] = asyncio.Event()
        await fleet.routers[1].cancel("batch", "cor")
        fleet.kill_router(fleet.routers[1])
        assert max([await ended_in(stream) for stream in streams]) < 0.3


@in_virtual_time
async def test_parts_that_follow_a_cancel() -> None:
    """The cancel came when all earlier parts had just ended. It is for this use of the request's id only."""
    async with running_fleet() as fleet:
        (first,) = await parts(fleet, "batch", max_tokens=2)
        assert isinstance((await read(first))[-1], End)
        await fleet.routers[1].cancel("batch", "cor")
        await asyncio.sleep(0.1)
        (second,) = await parts(fleet, "batch.1")
        assert await ended_in(second) < 0.1
        for stream in [*await parts(fleet, "batch", "batch.1", max_tokens=5), *await parts(fleet, "batch.2")]:
            assert isinstance((await read(stream))[-1], End)


@in_virtual_time
async def test_other_owners() -> None:
    """Neither a cancel nor superseding reaches the jobs of another API key with the same names."""
    async with running_fleet() as fleet:
        one, other = fleet.routers
        names: dict[str, Any] = {"group": "g", "supersedes": "k", "max_tokens": 60}
        theirs = [
            await execute(one, f"job-{n}", owner="berta", **names | {"supersedes": f"k-{n}"}) for n in (1, 2)
        ]
        mine = await execute(one, "job-1", owner="anna", **names)
        await other.cancel("job-1", "cor", "anna")
        await ended_in(mine)
        mine = await execute(one, "job-2", owner="anna", **names | {"supersedes": "k-2"})
        assert await other.cancel_group("g", "cor", "anna") == ["job-2"]
        await ended_in(mine)
        await other.cancel("job-2", "cor", "anna")
        await other.cancel("job-1", "cor")
        assert await other.cancel_group("g", "cor") == []
        for stream in theirs:
            assert isinstance((await read(stream))[-1], End)


@in_virtual_time
async def test_faulty_workers() -> None:
    """A cancel is tried again until workers no longer fail in it."""
    async with running_fleet(workers=4) as fleet:
        streams = [
            await execute(fleet.routers[0], f"job-{n}", group=f"g-{n}", max_tokens=FOREVER) for n in range(2)
        ]
        for node in fleet.nodes:
            node.failing = {"cancel", "find", "stop", "stop_shared"}
        cancelling = [
            asyncio.ensure_future(fleet.routers[1].cancel("job-0", "cor")),
            asyncio.ensure_future(fleet.routers[1].cancel_group("g-1", "cor")),
        ]
        await asyncio.sleep(1.0)
        assert all(stream.job.live for stream in streams)
        for node in fleet.nodes:
            node.failing.clear()
        for stream in streams:
            assert await ended_in(stream) < 0.5
        await asyncio.gather(*cancelling)
