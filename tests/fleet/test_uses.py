"""A job id is in use once, and what is meant for one use of it never reaches another (G17). In virtual time."""

import asyncio
from typing import Any

import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time
from tests.fleet.test_races import id_not_kept_by, keepers
from tests.fleet.world import Node, execute, read, running_fleet, tokens_seen
from worker_orcd.fleet import placing
from worker_orcd.fleet.keepers import Keeper
from worker_orcd.fleet.router import Router
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End


async def used(router: Router, job_id: str) -> None:
    """Use an id from beginning to end."""
    assert isinstance((await read(await execute(router, job_id, max_tokens=4)))[-1], End)


async def refused(router: Router, job_id: str, **given: Any) -> JobError:
    """Use an id that cannot be used now."""
    with pytest.raises(JobError) as error:
        await execute(router, job_id, max_tokens=400, **given)
    return error.value


@pytest.mark.parametrize("place", [0, 1])
@in_virtual_time
async def test_a_cancel_whose_message_is_late_reaches_no_later_use(place: int) -> None:
    """The other keeper has it in time; the id is used again meanwhile."""
    async with running_fleet(routers=2, workers=4) as fleet:
        one, other = fleet.routers
        job_id = id_not_kept_by(fleet, fleet.nodes[0])
        first = await execute(one, job_id, max_tokens=400)
        await tokens_seen(first, 3)
        late = keepers(fleet, job_id)[place]
        late.held["cancel"] = asyncio.Event()
        await other.cancel(job_id, "cor")
        assert cancelled(await read(first))
        second = await execute(one, job_id, max_tokens=100)
        await tokens_seen(second, 2)
        late.held["cancel"].set()
        assert isinstance((await read(second))[-1], End)


@pytest.mark.parametrize("thawed_sec", [0.2, 2.5])
@pytest.mark.parametrize("place", [0, 1])
@in_virtual_time
async def test_a_remembered_cancel_is_used_once_though_a_keeper_was_frozen(
    place: int, thawed_sec: float
) -> None:
    """The cancel reaches it when it thaws, after the use that it was for."""
    async with running_fleet(routers=2, workers=4) as fleet:
        one, other = fleet.routers
        job_id = id_not_kept_by(fleet, fleet.nodes[0])
        frozen = keepers(fleet, job_id)[place]
        frozen.thawed.clear()
        await asyncio.sleep(0.9)
        cancelling = asyncio.ensure_future(other.cancel(job_id, "cor"))
        while not all(router._peers._remotes[frozen.name].silent for router in fleet.routers):  # noqa: ASYNC110  # Of two routers.
            await asyncio.sleep(0.05)
        assert cancelled(await read(await execute(one, job_id, max_tokens=5)))
        await cancelling
        frozen.thawed.set()
        await asyncio.sleep(thawed_sec)
        await used(one, job_id)


@in_virtual_time
async def test_a_remembered_cancel_that_is_stored_late_reaches_no_second_use() -> None:
    """A keeper was frozen just before it was to remember the cancel, and knows nothing of the use that it was for."""
    async with running_fleet(routers=2, workers=4) as fleet:
        one, other = fleet.routers
        job_id = id_not_kept_by(fleet, fleet.nodes[0])
        first, second = keepers(fleet, job_id)[:2]
        first.held["remember"] = asyncio.Event()
        await other.cancel(job_id, "cor")
        first.thawed.clear()
        await asyncio.sleep(2.5)
        assert cancelled(await read(await execute(one, job_id, max_tokens=5)))
        first.held["remember"].set()
        first.thawed.set()
        await asyncio.sleep(0.5)
        await used(one, job_id)
        assert second.host._keeper.look(("", job_id)) is not None


@pytest.mark.parametrize("router_dies", [False, True])
@in_virtual_time
async def test_a_keeper_that_missed_a_use_does_not_misdirect_a_cancel(router_dies: bool) -> None:
    """It was frozen when the id was used again, long ago."""
    async with running_fleet(routers=2, workers=4) as fleet:
        for n in range(8):
            one, other = fleet.routers
            job_id = f"job-{n}"
            missed = keepers(fleet, job_id)[1]
            await used(one, job_id)
            missed.thawed.clear()
            await asyncio.sleep(3.0)
            stream = await execute(one, job_id, max_tokens=400, on_disconnect="continue")
            await tokens_seen(stream, 2)
            missed.thawed.set()
            await asyncio.sleep(3.0)
            claim = missed.host._keeper.look(("", job_id))
            assert claim is not None
            assert claim.incarnation == stream.job.incarnation, "it knows the use by now"
            if router_dies:
                fleet.kill_router(one)
            await other.cancel(job_id, "cor")
            await asyncio.sleep(0.1)
            assert not any(job_id in node.live for node in fleet.nodes)
            if router_dies:
                fleet.add_router()
                await asyncio.sleep(1.1)


@pytest.mark.parametrize("on_disconnect", ["cancel", "continue"])
@in_virtual_time
async def test_a_refused_duplicate_leaves_nothing_behind(on_disconnect: str) -> None:
    """One router knows a new worker, which is the id's first keeper now, before the job's own router does."""
    async with running_fleet(routers=2, workers=3) as fleet:
        one, other = fleet.routers
        fresh = Node(3, fleet.chance, fleet.weather)
        await fresh.worker.ready.wait()
        fleet.nodes.append(fresh)
        job_id = next(name for name in (f"job-{n}" for n in range(100)) if keepers(fleet, name)[0] is fresh)
        first = await execute(one, job_id, max_tokens=400)
        await tokens_seen(first, 3)
        other.found({fresh.name: fleet._connect(other, fresh)})
        await asyncio.sleep(0.3)
        error = await refused(other, job_id, on_disconnect=on_disconnect)
        assert error.code is ErrorCode.JOB_ID_IN_USE
        await asyncio.sleep(0.5)
        assert [node.live for node in fleet.nodes].count([job_id]) == 1
        claim = fresh.host._keeper.look(("", job_id))
        assert claim is not None
        assert claim.incarnation == first.job.incarnation
        await other.cancel(job_id, "cor")
        assert cancelled(await read(first))
        await used(other, job_id)


@pytest.mark.parametrize("no_worker", [False, True])
@in_virtual_time
async def test_an_id_is_in_use_while_its_job_waits_for_another_worker(no_worker: bool) -> None:
    """However long: no worker takes it, or those that are asked do not answer."""
    async with running_fleet(routers=2, workers=4) as fleet:
        one, other = fleet.routers
        first = await execute(one, "job", max_tokens=100)
        await tokens_seen(first, 3)
        again = asyncio.Event()
        choice = one._placing._choice
        if no_worker:
            one._placing._choice = lambda job, passed: None  # type: ignore[method-assign]
        else:
            for node in fleet.nodes:
                node.held["execute"] = again
        fleet.holder("job").die()
        for _ in range(4):
            await asyncio.sleep(2.3)
            assert (await refused(other, "job")).code is ErrorCode.JOB_ID_IN_USE
        again.set()
        one._placing._choice = choice  # type: ignore[method-assign]
        assert isinstance((await read(first))[-1], End)
        await used(other, "job")


@in_virtual_time
async def test_a_router_that_is_cut_off_from_an_ids_keepers_refuses_it() -> None:
    """They may know of a live job with this id. A requeued job has its id already."""
    async with running_fleet(routers=2, workers=4) as fleet:
        one, other = fleet.routers
        first = await execute(one, "job", max_tokens=400)
        await tokens_seen(first, 2)
        both = keepers(fleet, "job")[:2]
        cut = [link for link in fleet.connections[other.name] if link._node in both]
        for link in cut:
            link.cut = True
        for pause_sec in (0.0, 3.0):
            await asyncio.sleep(pause_sec)
            error = await refused(other, "job")
            assert (error.code, error.http_status, error.retry_after_sec) == (ErrorCode.ENGINE_LOST, 503, 1)
        assert [node.live for node in fleet.nodes].count(["job"]) == 1
        for link in cut:
            link.cut = False
        await one.cancel("job", "cor")
        assert cancelled(await read(first))
        await asyncio.sleep(2.5)
        await used(other, "job")


@in_virtual_time
async def test_an_ended_jobs_id_is_free_though_its_worker_is_frozen() -> None:
    """Its router has its end."""
    async with running_fleet(routers=1, workers=4) as fleet:
        stream = await execute(fleet.routers[0], "job", max_tokens=6)
        frozen = fleet.holder("job")
        assert isinstance((await read(stream))[-1], End)
        frozen.thawed.clear()
        await asyncio.sleep(2.5)
        await used(fleet.routers[0], "job")


@pytest.mark.parametrize("own", [True, False])
@in_virtual_time
async def test_keepers_do_not_forget_a_long_job(own: bool) -> None:
    """However many short ones there are meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "RENEW_SEC", 2.0)
        async with running_fleet(routers=2, workers=3) as fleet:
            for node in fleet.nodes:
                node.host._keeper = Keeper(5.0, bound=6)
            one, other = fleet.routers
            long = await execute(one, "long", max_tokens=400)
            for n in range(16):
                await used(one, f"short-{n}")
                await asyncio.sleep(0.3)
            assert keepers(fleet, "long")[0].host._keeper.look(("", "long")) is not None
            await (one if own else other).cancel("long", "cor")
            assert cancelled(await read(long))
