"""Routers and workers die one after the other, and each time another one sees to their jobs (G17). In virtual time."""

import asyncio
import os
import random
from dataclasses import dataclass, field

import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time, text_of
from tests.fleet.world import Fleet, execute, read, running_fleet, tokens_seen
from worker_orcd.fleet.router import Router
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.events import End, Event
from worker_orcd.worker.streams import JobStream

AWAY_SEC = 0.1
"""How long a client needs to come back when its connection breaks."""
SETTLED_SEC = 4.5
"""After the death of a router, its lease has ended and another one serves its jobs."""
SEEDS = int(os.environ.get("SUCCESSIONS", "3"))


@dataclass(eq=False)
class Client:
    """The client of one job, which comes back through another router when its own one dies."""

    fleet: Fleet
    job_id: str
    events: list[Event] = field(default_factory=list)
    router: Router | None = None

    async def run(self, max_tokens: int) -> "Client":
        """Read to the last event."""
        self.router = router = self.fleet.chance.choice(self.fleet.routers)
        stream = await execute(router, self.job_id, max_tokens=max_tokens, seed=7)
        while True:
            reading = asyncio.ensure_future(read(stream, len(self.events)))
            while not reading.done() and router in self.fleet.routers:  # noqa: ASYNC110  # Of two things.
                await asyncio.sleep(0.01)
            if reading.done():
                self.events += reading.result()
                router.follower_left(stream)
                return self
            reading.cancel()
            self.events = list(stream.job.events)
            await asyncio.sleep(AWAY_SEC)
            router, stream = await self._back()
            self.router = router

    async def _back(self) -> tuple[Router, JobStream]:
        while True:
            router = self.fleet.chance.choice(self.fleet.routers)
            try:
                stream = await router.stream_of(self.job_id)
            except JobError as error:
                if error.http_status != 503:
                    raise
                await asyncio.sleep(0.05)
            else:
                stream.join()
                return router, stream


@pytest.mark.parametrize("pause_sec", [0.2, 1.0, 3.5, 5.0])
@in_virtual_time
async def test_a_job_whose_router_died_survives_its_worker(pause_sec: float) -> None:
    """Its client came back through another router: within the dead one's lease, that router takes the job over when the
    worker dies; later, it serves it already."""
    async with running_fleet(routers=2, workers=3) as fleet:
        alone = await Client(fleet, "alone").run(300)
        client = Client(fleet, "job")
        running = asyncio.ensure_future(client.run(300))
        await asyncio.sleep(0.5)
        assert client.router is not None
        fleet.kill_router(client.router)
        await asyncio.sleep(pause_sec)
        fleet.holder("job").die()
        await running
        assert isinstance(client.events[-1], End)
        assert text_of(client.events) == text_of(alone.events)


@in_virtual_time
async def test_two_routers_do_not_take_the_same_job_over() -> None:
    """Whichever claims it first: the job runs once, and both of them have all of its stream."""
    async with running_fleet(routers=3, workers=4) as fleet:
        for n in range(4):
            doomed = fleet.routers[0]
            job_id = f"job-{n}"
            stream = await execute(doomed, job_id, max_tokens=300)
            await tokens_seen(stream, 2)
            followers = [await router.stream_of(job_id) for router in fleet.routers[1:]]
            reading = []
            for follower in followers:
                follower.join()
                reading.append(asyncio.ensure_future(read(follower)))
            fleet.kill_router(doomed)
            await asyncio.sleep(0.3)
            fleet.holder(job_id).die()
            for _ in range(40):
                await asyncio.sleep(0.1)
                living = [node for node in fleet.nodes if not node.death.done()]
                assert sum(job_id in node.live for node in living) <= 1
            ends = await asyncio.gather(*reading)
            assert {text_of(events) for events in ends} == {text_of(ends[0])}
            assert all(isinstance(events[-1], End) for events in ends)
            fleet.add_router()
            fleet.add_worker()
            await asyncio.sleep(1.1)


@in_virtual_time
async def test_a_job_that_needs_no_client_survives_its_router_and_then_its_worker() -> None:
    """Any router serves it when its own is dead."""
    async with running_fleet(routers=2, workers=3) as fleet:
        doomed = fleet.routers[0]
        await tokens_seen(await execute(doomed, "job", on_disconnect="continue", max_tokens=400), 3)
        fleet.kill_router(doomed)
        await asyncio.sleep(4.0)
        fleet.holder("job").die()
        await asyncio.sleep(1.0)
        events = await read(await fleet.routers[0].stream_of("job"))
        assert isinstance(events[-1], End)
        assert len(text_of(events)) > 0


@in_virtual_time
async def test_an_inherited_job_is_stopped_when_its_client_stays_away() -> None:
    """After the time that a client has to come back."""
    async with running_fleet(routers=2, workers=3) as fleet:
        loop = asyncio.get_running_loop()
        doomed = fleet.routers[0]
        await tokens_seen(await execute(doomed, "job", max_tokens=400), 3)
        fleet.kill_router(doomed)
        (heir,) = fleet.routers
        stream = await heir.stream_of("job")
        stream.join()
        await asyncio.sleep(3.5)
        heir.follower_left(stream)
        left_at = loop.time()
        await asyncio.sleep(1.0)
        stream.join()
        heir.follower_left(stream)
        assert cancelled(await read(stream), "disconnect")
        assert 3.9 < loop.time() - left_at < 4.5
        assert not any(node.live for node in fleet.nodes)


@in_virtual_time
async def test_a_cancel_of_an_inherited_job_ends_although_its_worker_freezes() -> None:
    """Its new router sees to it, as its own one would have."""
    async with running_fleet(routers=2, workers=3) as fleet:
        doomed = fleet.routers[0]
        await tokens_seen(await execute(doomed, "job", max_tokens=400), 3)
        stream = await fleet.routers[1].stream_of("job")
        stream.join()
        reading = asyncio.ensure_future(read(stream))
        fleet.kill_router(doomed)
        await asyncio.sleep(4.0)
        frozen = fleet.holder("job")
        frozen.thawed.clear()
        asked = asyncio.get_running_loop().time()
        await fleet.routers[0].cancel("job", "cor")
        assert cancelled(await reading)
        assert asyncio.get_running_loop().time() - asked < 5.0
        frozen.thawed.set()


@pytest.mark.parametrize("seed", range(SEEDS))
@in_virtual_time
async def test_no_client_loses_its_job_while_routers_and_workers_die(seed: int) -> None:
    """One death after the other; each client has the whole stream that it would have had. Of three deaths within
    `SETTLED_SEC`, a router's, a worker's and another router's, the last may take the only copy of a job with it: so no
    router dies then."""
    async with running_fleet(routers=3, workers=4, seed=seed) as fleet:
        loop, killer = asyncio.get_running_loop(), random.Random(seed)
        alone = text_of((await Client(fleet, "alone").run(300)).events)
        clients = [Client(fleet, f"job-{n}") for n in range(6)]
        reading = [asyncio.ensure_future(client.run(300)) for client in clients]
        await asyncio.sleep(0.3)
        router_died_at, workers = -SETTLED_SEC, 0
        while not all(one.done() for one in reading):
            settled = loop.time() - router_died_at > SETTLED_SEC or not workers
            if killer.random() < 0.5 and settled:
                fleet.kill_router(killer.choice(fleet.routers))
                fleet.add_router()
                router_died_at, workers = loop.time(), 0
            else:
                killer.choice([node for node in fleet.nodes if not node.death.done()]).die()
                fleet.add_worker()
                workers += 1
            await asyncio.sleep(killer.uniform(0.4, 3.0))
        for client in await asyncio.gather(*reading):
            assert isinstance(client.events[-1], End), (client.job_id, client.events[-1])
            assert text_of(client.events) == alone
        await asyncio.sleep(1.0)
        assert not any(node.live for node in fleet.nodes if not node.death.done())


@pytest.mark.parametrize("stuck_sec", [0.3, 0.8, 2.0])
@in_virtual_time
async def test_a_cancel_that_nobody_answers_in_time_is_not_lost(stuck_sec: float) -> None:
    """All workers are busy for a while, and the job's router has just died: no other process knows of the job."""
    async with running_fleet(routers=2, workers=4) as fleet:
        for n in range(6):
            doomed = fleet.routers[0]
            job_id = f"job-{n}"
            await tokens_seen(await execute(doomed, job_id, on_disconnect="continue", max_tokens=400), 3)
            fleet.kill_router(doomed)
            for node in fleet.nodes:
                node.thawed.clear()
            cancelling = asyncio.ensure_future(fleet.routers[0].cancel(job_id, "cor"))
            await asyncio.sleep(stuck_sec)
            for node in fleet.nodes:
                node.thawed.set()
            await cancelling
            await asyncio.sleep(0.7)
            assert not any(node.live for node in fleet.nodes)
            again = await execute(fleet.routers[0], job_id, max_tokens=5)
            assert isinstance((await read(again))[-1], End)
            fleet.add_router()
            await asyncio.sleep(6.0)


@in_virtual_time
async def test_a_cancel_at_a_router_that_knows_no_worker_yet_is_not_lost() -> None:
    """It has just been started, and finds the workers in a moment."""
    async with running_fleet(routers=1, workers=3) as fleet:
        stream = await execute(fleet.routers[0], "job", max_tokens=400)
        await tokens_seen(stream, 3)
        fresh = fleet.add_router(finds=False)
        cancelling = asyncio.ensure_future(fresh.cancel("job", "cor"))
        await asyncio.sleep(0.5)
        fleet.find()
        await cancelling
        assert cancelled(await read(stream))
