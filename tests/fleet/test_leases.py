"""A router or a worker that is slow is not taken for dead; one that is dead is, in time (G17)."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes import QUICK
from tests.fleet.test_fleet import cancelled, in_virtual_time, text_of
from tests.fleet.world import Fleet, Node, execute, read, running_fleet, tokens_seen
from tests.simulation.engine import SEQUENCES
from worker_orcd.fleet.feeds import LEASE_SEC, SWEEP_SEC, Feeds
from worker_orcd.fleet.keepers import keepers_of
from worker_orcd.fleet.peers import PeerSilent, Remote
from worker_orcd.fleet.renewal import Renewal
from worker_orcd.fleet.routing import chain_of
from worker_orcd.jobs.events import End
from worker_orcd.jobs.lifecycle import State
from worker_orcd.supervisor.engine import Engine, EngineListener


@asynccontextmanager
async def busy(fleet: Fleet) -> AsyncIterator[None]:
    """What the first router asks arrives only after this."""
    free = asyncio.Event()
    for connection in fleet.connections[fleet.routers[0].name]:

        async def call(method: str, *arguments: Any, served: Any = connection.call) -> Any:
            await free.wait()
            return await served(method, *arguments)

        connection.call = call  # type: ignore[method-assign]
    yield
    free.set()


@pytest.mark.parametrize("renews", [True, False])
@in_virtual_time
async def test_a_router_that_is_too_busy_to_poll_keeps_its_jobs_as_long_as_it_is_alive(renews: bool) -> None:
    """A thread renews its leases meanwhile; without that it would be taken for dead, as one that is."""
    async with running_fleet(routers=1, workers=1) as fleet:
        router = fleet.routers[0]
        stream = await execute(router, "job", max_tokens=400)
        await tokens_seen(stream, 3)
        async with busy(fleet):
            for _ in range(2 * round(LEASE_SEC)):
                await asyncio.sleep(1.0)
                if renews:
                    await fleet.nodes[0].host.renew_lease(router.name)
            assert bool(fleet.nodes[0].live) == renews
        events = await read(stream)
        assert isinstance(events[-1], End) == renews
        assert cancelled(events, "disconnect") != renews
        text_of(events)


@pytest.mark.parametrize("where", ["at the worker", "at its news", "when it is back"])
@in_virtual_time
async def test_a_poll_that_fails_unexpectedly_is_reported_and_repeated(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in one message must not cost all jobs at a worker: the stream loses nothing and doubles nothing."""
    async with running_fleet(routers=1, workers=1) as fleet:
        router, node = fleet.routers[0], fleet.nodes[0]
        reported: list[str] = []
        monkeypatch.setattr(router, "failed", lambda _remote, error: reported.append(str(error)))
        stream = await execute(router, "job", max_tokens=400)
        await tokens_seen(stream, 3)
        for _ in range(5):
            if where == "when it is back":
                node.failing.add("poll")
                await asyncio.sleep(1.0)
                node.failing.clear()
            with monkeypatch.context() as faulty:
                target, method = {
                    "at the worker": (node.host, "poll"),
                    "at its news": (router, "news"),
                    "when it is back": (router, "back"),
                }[where]
                faulty.setattr(target, method, _fails)
                await asyncio.sleep(1.0)
            await asyncio.sleep(0.5)
        events = await read(stream)
        assert isinstance(events[-1], End)
        assert len(text_of(events)) >= 400
        assert len(reported) >= 5
        assert set(reported) == {"a defect"}


def _fails(*_: Any) -> Any:
    raise ValueError("a defect")


@in_virtual_time
async def test_renewing_says_so_to_all_workers() -> None:
    """Also to one that has not answered for a while."""
    async with running_fleet(routers=2, workers=2) as fleet:
        fleet.routers[0].renew_leases()
        await asyncio.sleep(0.1)
        assert fleet.called["renew_lease"] == 2


@in_virtual_time
async def test_time_in_which_a_worker_did_not_run_does_not_end_leases() -> None:
    """What routers sent meanwhile may still lie there. Time in which it did run does."""
    feeds = Feeds(lambda: pytest.fail("nobody asks"))
    feeds.of("router")
    await asyncio.sleep(10 * LEASE_SEC)
    assert not list(feeds.expired(lambda _: None))
    assert feeds.is_alive("router")
    for _ in range(round(LEASE_SEC / SWEEP_SEC)):
        list(feeds.expired(lambda _: None))
    assert not feeds.is_alive("router")


class Slow:
    """A worker that answers after a while, from another thread."""

    def __init__(self, sec: float) -> None:
        self.sec = sec

    async def call(self, method: str, *arguments: Any) -> Any:
        """Answer with the method's name."""
        loop, answered = asyncio.get_running_loop(), asyncio.Event()
        timer = threading.Timer(self.sec, loop.call_soon_threadsafe, (answered.set,))
        timer.start()
        try:
            await answered.wait()
            for _ in range(5):
                await asyncio.sleep(0)
        finally:
            timer.cancel()
        return method

    def send(self, method: str, *arguments: Any) -> None:
        """Not looked at."""


@pytest.mark.parametrize("after_sec", [0.01, 0.26])
def test_an_answer_that_came_while_this_process_was_busy_counts(after_sec: float) -> None:
    """Its time was up when the process could look, also if that was in the last piece of it. An answer that is late
    itself does not."""

    async def ask(sec: float) -> Any:
        asking = asyncio.ensure_future(Remote("worker", Slow(sec)).call("look", patience_sec=0.5))
        await asyncio.sleep(after_sec)
        time.sleep(0.8)  # noqa: ASYNC251  # That is what is tested.
        return await asking

    assert asyncio.run(ask(0.3)) == "look"
    with pytest.raises(PeerSilent):
        asyncio.run(ask(2.0))


def test_leases_are_renewed_while_the_loop_is_busy_but_not_when_it_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread renews them; but not for a loop that has done nothing for long."""
    monkeypatch.setattr("worker_orcd.fleet.renewal.STUCK_SEC", 0.5)
    renewed: list[float] = []

    async def run() -> tuple[int, int, int]:
        renewal = Renewal(
            asyncio.get_running_loop(), lambda: renewed.append(time.monotonic()), every_sec=0.01
        )
        await asyncio.sleep(0.1)
        before = len(renewed)
        time.sleep(0.3)  # noqa: ASYNC251
        while_busy = len(renewed) - before
        time.sleep(0.5)  # noqa: ASYNC251
        stuck = len(renewed)
        time.sleep(0.3)  # noqa: ASYNC251
        more = len(renewed) - stuck
        await asyncio.sleep(0.2)
        again = len(renewed) - stuck - more
        renewal.close()
        return while_busy, more, again

    while_busy, more, again = asyncio.run(run())
    assert while_busy > 0
    assert more == 0
    assert again > 0


@pytest.mark.parametrize("renews", [False, True])
@in_virtual_time
async def test_a_router_whose_polls_fail_for_long_is_dead_though_its_thread_goes_on(renews: bool) -> None:
    """By a defect: nobody would follow its jobs."""
    async with running_fleet(routers=1, workers=1) as fleet:
        router = fleet.routers[0]
        stream = await execute(router, "job", max_tokens=400)
        await tokens_seen(stream, 3)
        (connection,) = fleet.connections[router.name]
        served = connection.call

        async def call(method: str, *arguments: Any) -> Any:
            if method == "poll":
                raise RuntimeError("not one of those that are expected")
            return await served(method, *arguments)

        connection.call = call  # type: ignore[method-assign]
        for _ in range(2 * round(LEASE_SEC)):
            if renews:
                router.renew_leases()
            await asyncio.sleep(1.0)
        assert not fleet.nodes[0].live


@in_virtual_time
async def test_a_drained_worker_knows_dead_routers_as_well() -> None:
    """Other routers ask it, too, when they look for one that serves a job."""
    async with running_fleet(routers=2, workers=2) as fleet:
        await fleet.nodes[0].host.drain()
        dead = fleet.routers[0]
        fleet.kill_router(dead)
        await asyncio.sleep(LEASE_SEC + 2.0)
        assert not await fleet.nodes[0].host.is_alive(dead.name)


def test_one_failure_does_not_end_the_renewing() -> None:
    """The loop reports each, and there is a next time."""
    renewed: list[int] = []
    reported: list[object] = []

    def renew() -> None:
        renewed.append(1)
        raise ValueError

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, failure: reported.append(failure["exception"]))
        renewal = Renewal(loop, renew, every_sec=0.01)
        await asyncio.sleep(0.3)
        renewal.close()

    asyncio.run(run())
    assert len(renewed) > 1
    assert len(reported) > 1
    assert all(isinstance(one, ValueError) for one in reported)


@in_virtual_time
async def test_a_cancel_of_a_job_that_found_no_free_slot_reaches_no_later_use() -> None:
    """It came to the worker before the job did, which was refused there and has ended since."""
    async with running_fleet(routers=2, workers=3) as fleet:
        one, other = fleet.routers
        prompt = QUICK.ljust(260)
        stream = await execute(one, "job", prompt, max_tokens=400)
        await tokens_seen(stream, 2)
        holder = fleet.holder("job")
        full, free = (node for node in fleet.nodes if node is not holder)
        number = 0
        while len(full.live) < SEQUENCES or len(free.live) < SEQUENCES - 1:
            await execute(one, f"fill-{number}", max_tokens=400)
            number += 1
            await asyncio.sleep(0.3)
        for router in fleet.routers:  # So the full one is asked first.
            router._placing.warm.sent(full.name, chain_of(stream.job.request, ""))
        for name in [*free.live[SEQUENCES - 1 :], *(name for name in holder.live if name != "job")]:
            await one.cancel(name, "cor")
        await asyncio.sleep(0.6)
        full.held["execute"] = asyncio.Event()
        holder.die()
        await asyncio.sleep(0.15)
        await other.cancel("job", "cor")
        assert cancelled(await read(stream))
        full.held.pop("execute").set()
        await asyncio.sleep(0.3)
        again = await execute(other, "job", prompt, max_tokens=5)
        assert isinstance((await read(again))[-1], End)


@pytest.mark.parametrize("dies", [True, False])
@in_virtual_time
async def test_a_remembered_cancel_of_an_earlier_use_stays_without_effect_when_a_job_is_inherited(
    dies: bool,
) -> None:
    """A new keeper remembers it; the other one knows that the job is a later use."""
    async with running_fleet(routers=2, workers=3) as fleet:
        one, other = fleet.routers
        names = [f"worker-{n}" for n in range(4)]
        ids = (f"job-{n}" for n in range(1000))
        job_id = next(one for one in ids if keepers_of(("", one), names)[0] == names[3])
        await read(await execute(one, job_id, max_tokens=3))
        await fleet.add_worker().worker.ready.wait()
        await asyncio.sleep(1.5)
        await other.cancel(job_id, "cor")
        stream = await execute(one, job_id, max_tokens=400, on_disconnect="continue")
        await asyncio.sleep(1.0)
        assert stream.job.stop is None
        if dies:
            fleet.kill_router(one)
        await asyncio.sleep(9.5)
        record = await other.record(job_id, "")
        assert record is not None
        assert record["state"] == "completed"


@in_virtual_time
async def test_a_requeued_job_does_not_wait_for_a_worker_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have free slots."""
    launch = Node._launch

    async def slow(node: Node, listener: EngineListener) -> Engine:
        await asyncio.sleep(60.0)
        return await launch(node, listener)

    async with running_fleet(routers=1, workers=3) as fleet:
        streams = [await execute(fleet.routers[0], f"job-{n}", max_tokens=400) for n in range(3)]
        await tokens_seen(streams[-1], 2)
        monkeypatch.setattr(Node, "_launch", slow)
        loading = fleet.add_worker()
        await asyncio.sleep(1.5)
        fleet.holder("job-0").die()
        await asyncio.sleep(3.0)
        assert streams[0].job.state is State.RUNNING
        assert not loading.live


@pytest.mark.parametrize("seed", range(8))
@in_virtual_time
async def test_no_job_waits_for_a_slot_while_one_is_free_after_a_death(seed: int) -> None:
    """Two routers place the dead worker's jobs in the same moment, and those that are left are just enough."""
    async with running_fleet(routers=2, workers=3, seed=seed) as fleet:
        streams = [await execute(fleet.routers[n % 2], f"job-{n}", max_tokens=120) for n in range(8)]
        await tokens_seen(streams[-1], 2)
        fleet.chance.choice(fleet.nodes).die()
        await asyncio.sleep(0.5)
        jobs = [stream.job for stream in streams]
        assert all(job.state is State.RUNNING for job in jobs if job.live)
        assert sum(job.live for job in jobs) == 8
        for stream in streams:
            text_of(await read(stream))


@pytest.mark.parametrize("stuck_sec", [7, 12])
@in_virtual_time
async def test_a_router_that_comes_back_stops_no_job_that_another_one_has_placed(stuck_sec: int) -> None:
    """It was cut off while it handed the job to the worker to which the other one has handed it since."""
    async with running_fleet(routers=2, workers=3) as fleet:
        one, other = fleet.routers
        stream = await execute(one, "job", max_tokens=400, on_disconnect="continue")
        await tokens_seen(stream, 3)
        reader = await other.stream_of("job")
        reader.join()
        async with busy(fleet):
            fleet.holder("job").die()
            await asyncio.sleep(stuck_sec)
        events = await read(reader)
        assert isinstance(events[-1], End)
        text_of(events)
