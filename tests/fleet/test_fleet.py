"""A fleet keeps the promises of one worker, also while its parts die or freeze (G17). In virtual time, without Ray."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.fakes import QUICK
from tests.fleet.world import execute, read, running_fleet, tokens_seen
from tests.simulation.clock import virtual_time
from worker_orcd.fleet.router import Router
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End, Error, Event, Token
from worker_orcd.jobs.request import ExecuteRequest


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on a loop whose time passes only by waiting."""

    @functools.wraps(test)
    def run(*arguments: Any, **given: Any) -> None:
        with virtual_time() as loop:
            try:
                loop.run_until_complete(test(*arguments, **given))
            finally:
                loop.cancel_everything()
            assert not loop.failures

    return run


def cancelled(events: list[Event], reason: str = "client") -> bool:
    """Whether these events end in a cancel for this reason."""
    last = events[-1]
    return isinstance(last, Error) and last.code is ErrorCode.CANCELLED and last.details["reason"] == reason


def text_of(events: list[Event]) -> str:
    """The text of a stream; its tokens must be numbered without a gap."""
    tokens = [event for event in events if isinstance(event, Token)]
    assert [token.i for token in tokens] == list(range(len(tokens)))
    return "".join(token.t for token in tokens)


@in_virtual_time
async def test_jobs_run_and_a_cancel_reaches_each_from_another_router() -> None:
    """Whichever worker has the job, and also if two cancels come."""
    async with running_fleet() as fleet:
        ended = await read(await execute(fleet.routers[0], "ends"))
        assert isinstance(ended[-1], End)
        streams = [await execute(fleet.routers[0], f"job-{n}", max_tokens=400) for n in range(9)]
        assert {fleet.holder(f"job-{n}").name for n in range(9)} == {node.name for node in fleet.nodes}
        for n in range(9):
            await fleet.routers[1].cancel(f"job-{n}", "cor-cancel")
            await fleet.routers[0].cancel(f"job-{n}", "cor-again")
        for stream in streams:
            assert cancelled(await read(stream))
            assert stream.job.receipt is not None
            assert stream.job.receipt.cancel_correlation_id == "cor-cancel"
            assert stream.job.receipt.freed_ms is not None
        assert not any(node.live for node in fleet.nodes)


@in_virtual_time
async def test_jobs_that_come_together_are_spread() -> None:
    """They do not all go to the worker that had the least load before."""
    async with running_fleet() as fleet:
        await asyncio.gather(*(execute(fleet.routers[0], f"job-{n}", max_tokens=400) for n in range(9)))
        assert [len(node.live) for node in fleet.nodes] == [3, 3, 3]


@in_virtual_time
async def test_an_id_is_in_use_once() -> None:
    """At any router; when its job has ended, it is free at once."""
    async with running_fleet() as fleet:
        for attempt in range(5):
            answers = await asyncio.gather(
                *(execute(router, "same", max_tokens=5) for router in fleet.routers * 3),
                return_exceptions=True,
            )
            (stream,) = [one for one in answers if not isinstance(one, BaseException)]
            refused = [one for one in answers if isinstance(one, JobError)]
            assert {one.code for one in refused} == {ErrorCode.JOB_ID_IN_USE}
            assert isinstance((await read(stream))[-1], End), attempt
        other = await execute(fleet.routers[1], "same", owner="berta", max_tokens=400)
        assert isinstance((await read(await execute(fleet.routers[0], "same", owner="anna")))[-1], End)
        assert other.job.live


async def run_and_cancel(router: Router, request: ExecuteRequest) -> None:
    """Have a job generate, cancel it, and read its end."""
    (stream,) = await router.execute([request], "cor")
    stream.join()
    await tokens_seen(stream, 2)
    await router.cancel(request.job_id, "cor-cancel")
    assert cancelled(await read(stream))


@pytest.mark.parametrize("seed", range(5))
@in_virtual_time
async def test_a_retry_of_a_cancelled_job_is_answered_as_cancelled(seed: int) -> None:
    """Though it ends at once: perhaps before all keepers of the id know that the cancelled job is over."""
    async with running_fleet(seed=seed) as fleet:
        request = ExecuteRequest.of(job_id="same", prompt=QUICK, ignore_eos=True, max_tokens=400)
        for n in range(20):
            one, other = fleet.routers[n % 2], fleet.routers[(n + 1) % 2]
            await run_and_cancel(one, request)
            cancel = await other.cancelled_lately(["same"], "")
            assert cancel is not None
            (again,) = await other.execute([request], "cor-again", retry_of=cancel)
            again.join()
            assert cancelled(await read(again))


@pytest.mark.parametrize("pause_ms", range(0, 16, 2))
@in_virtual_time
async def test_a_cancel_of_a_retry_reaches_no_later_use(pause_ms: int) -> None:
    """Though it comes while the retry, which ends at once, is handed over together with it."""
    async with running_fleet(workers=1, seed=pause_ms) as fleet:
        one, other = fleet.routers
        request = ExecuteRequest.of(job_id="same", prompt=QUICK, ignore_eos=True, max_tokens=400)
        await run_and_cancel(one, request)
        cancel = await one.cancelled_lately(["same"], "")
        retrying = asyncio.ensure_future(one.execute([request], "cor-retry", retry_of=cancel))
        await asyncio.sleep(pause_ms / 1000)
        await one.cancel("same", "cor-second")
        (retry,) = await retrying
        retry.join()
        assert cancelled(await read(retry))
        await asyncio.sleep(1.0)
        assert isinstance((await read(await execute(other, "same", max_tokens=3)))[-1], End)


@in_virtual_time
async def test_a_cancel_that_overtakes_its_job_wins_once() -> None:
    """At another router, for the next use only. The job has one event, even if it would have been short."""
    async with running_fleet() as fleet:
        for n in range(8):
            await fleet.routers[n % 2].cancel(f"early-{n}", "cor-early")
            stream = await execute(fleet.routers[(n + 1) % 2], f"early-{n}", max_tokens=1 + n % 2 * 40)
            events = await read(stream)
            assert len(events) == 1
            assert cancelled(events)
            again = await execute(fleet.routers[n % 2], f"early-{n}", max_tokens=3)
            assert isinstance((await read(again))[-1], End)


@in_virtual_time
async def test_a_cancel_of_an_ended_job_reaches_no_later_use() -> None:
    """Nor does one that follows a refused request."""
    async with running_fleet() as fleet:
        await read(await execute(fleet.routers[0], "job", max_tokens=3))
        await fleet.routers[1].cancel("job", "cor")
        assert isinstance((await read(await execute(fleet.routers[0], "job", max_tokens=3)))[-1], End)
        fleet.routers[0].refused("refused")
        await asyncio.sleep(0.1)
        await fleet.routers[1].cancel("refused", "cor")
        assert isinstance((await read(await execute(fleet.routers[0], "refused", max_tokens=3)))[-1], End)


@pytest.mark.parametrize("seed", range(3))
@in_virtual_time
async def test_jobs_of_a_dead_worker_go_on_elsewhere(seed: int) -> None:
    """Their streams stay open, without a gap, and have the text that they would have had."""
    async with running_fleet(seed=seed) as fleet:
        asked: dict[str, Any] = {"seed": 7, "max_tokens": 60}
        undisturbed = await read(await execute(fleet.routers[0], "undisturbed", **asked))
        streams = [await execute(fleet.routers[n % 2], f"job-{n}", **asked) for n in range(8)]
        reading = [asyncio.ensure_future(read(stream)) for stream in streams]
        await tokens_seen(streams[-1], 5)
        victim = fleet.nodes[seed]
        moved = set(victim.live)
        assert moved
        victim.die()
        all_events = await asyncio.gather(*reading)
        assert {text_of(events) for events in all_events} == {text_of(undisturbed)}
        assert all(isinstance(events[-1], End) for events in all_events)
        assert {stream.job.job_id for stream in streams if stream.job.requeues} == moved


@in_virtual_time
async def test_a_cancel_of_a_job_whose_worker_just_died_is_not_lost() -> None:
    """Whatever the moment: before its death is noticed, between two workers, or at the next one."""
    async with running_fleet(workers=4) as fleet:
        for n, pause_sec in enumerate([0.0, 0.001, 0.004, 0.01, 0.3]):
            stream = await execute(fleet.routers[0], f"job-{n}", max_tokens=400)
            await tokens_seen(stream, 2)
            victim = fleet.holder(f"job-{n}")
            victim.die()
            fleet.add_worker()
            await asyncio.sleep(pause_sec)
            await fleet.routers[1].cancel(f"job-{n}", "cor")
            began = asyncio.get_running_loop().time()
            assert cancelled(await read(stream)), pause_sec
            assert asyncio.get_running_loop().time() - began < 1.0
            await asyncio.sleep(2.0)
            assert not any(node.live for node in fleet.nodes if not node.death.done())


@in_virtual_time
async def test_a_frozen_worker_delays_no_other_jobs_cancel() -> None:
    """Each is answered at once, and its job ends at once; a job of the frozen worker itself ends within five
    seconds, and then nothing is reported as freed."""
    async with running_fleet(workers=3) as fleet:
        loop = asyncio.get_running_loop()
        streams = {f"job-{n}": await execute(fleet.routers[0], f"job-{n}", max_tokens=400) for n in range(12)}
        frozen = fleet.nodes[1]
        stuck = set(frozen.live)
        assert 0 < len(stuck) < 12
        frozen.thawed.clear()
        for job_id, stream in streams.items():
            asked = loop.time()
            await fleet.routers[1].cancel(job_id, "cor")
            assert loop.time() - asked < 0.25
            if job_id not in stuck:
                assert cancelled(await read(stream))
                assert loop.time() - asked < 1.2
        asked = loop.time()
        for job_id in stuck:
            assert cancelled(await read(streams[job_id]))
            receipt = streams[job_id].job.receipt
            assert receipt is not None
            assert receipt.freed_ms is None
        assert loop.time() - asked < 5.0
        frozen.thawed.set()
        await asyncio.sleep(5.0)
        assert not frozen.live


@in_virtual_time
async def test_jobs_of_a_dead_router_end_with_its_lease_or_go_on() -> None:
    """As `on_disconnect` says; its clients come back through another router and lose nothing."""
    async with running_fleet(routers=3) as fleet:
        doomed = fleet.routers[0]
        left = await execute(doomed, "left", max_tokens=400)
        await execute(doomed, "goes-on", on_disconnect="continue", max_tokens=300)
        back = await execute(doomed, "comes-back", max_tokens=300)
        await tokens_seen(back, 5)
        seen = len(back.job.events)
        fleet.kill_router(doomed)
        again = await fleet.routers[1].stream_of("comes-back")
        rest = await read(again, seen)
        assert isinstance(rest[-1], End)
        text_of(list(again.job.events))
        await asyncio.sleep(2.0)
        after = await fleet.routers[0].stream_of("left")
        assert cancelled(list(after.job.events), "disconnect")
        assert after.job.incarnation == left.job.incarnation
        assert isinstance((await read(await fleet.routers[0].stream_of("goes-on")))[-1], End)


@in_virtual_time
async def test_groups_records_receipts_and_superseding_work_from_any_router() -> None:
    """As with one worker."""
    async with running_fleet() as fleet:
        one, other = fleet.routers
        streams = [await execute(one, f"member-{n}", group="g", max_tokens=400) for n in range(6)]
        assert sorted(await other.cancel_group("g", "cor")) == [f"member-{n}" for n in range(6)]
        receipts = await other.receipts([f"member-{n}" for n in range(6)], "", 5.0)
        assert receipts is not None
        assert {record["state"] for record in receipts} == {"cancelled"}
        for stream in streams:
            assert cancelled(await read(stream))
        assert len(await other.records("", 100)) == 6
        old = await execute(one, "old", supersedes="key", max_tokens=400)
        await tokens_seen(old, 2)
        await execute(other, "new", supersedes="key", max_tokens=3)
        assert cancelled(await read(old), "superseded")
        record = await one.record("old", "")
        assert record is not None
        assert record["superseded_by"] == "new"
        assert await one.record("never", "") is None
        with pytest.raises(JobError, match="no job"):
            await one.stream_of("never")


@in_virtual_time
async def test_a_client_that_leaves_while_its_job_is_handed_over_leaves_no_job_behind() -> None:
    """Serve cancels the request's task then, wherever it waits."""
    async with running_fleet() as fleet:
        for n in range(20):
            starting = asyncio.ensure_future(execute(fleet.routers[0], f"job-{n}", max_tokens=400))
            await asyncio.sleep(0.001 * n)
            starting.cancel()
            await asyncio.wait({starting})
            if not starting.cancelled():
                fleet.routers[0].reader_left(starting.result())
        await asyncio.sleep(0.5)
        assert not any(node.live for node in fleet.nodes)


@in_virtual_time
async def test_a_job_whose_client_leaves_is_stopped() -> None:
    """As with one worker."""
    async with running_fleet() as fleet:
        stream = await execute(fleet.routers[0], "job", max_tokens=400)
        await tokens_seen(stream, 2)
        fleet.routers[0].reader_left(stream)
        assert cancelled(await read(stream), "disconnect")
        record = await fleet.routers[1].record("job", "")
        assert record is not None
        assert record["state"] == "cancelled"


@in_virtual_time
async def test_a_job_that_another_client_reads_at_its_router_is_stopped_when_that_one_leaves() -> None:
    """Also after it went on at another worker, which then must not take it for left."""
    async with running_fleet() as fleet:
        router = fleet.routers[0]
        stream = await execute(router, "job", max_tokens=400)
        await tokens_seen(stream, 2)
        follower = await router.stream_of("job")
        follower.join()
        router.reader_left(stream)
        await asyncio.sleep(0.3)
        fleet.holder("job").die()
        await tokens_seen(follower, follower.job.tokens_out + 10)
        assert follower.job.live
        router.follower_left(follower)
        assert cancelled(await read(follower), "disconnect")
