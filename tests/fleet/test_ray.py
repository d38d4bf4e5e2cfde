"""A fleet on Ray, with real processes (G17): none of its cancels is missed, and no stream is torn, while they die."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.fleet.chaos import Chaos
from tests.fleet.ray_fleet import (
    ROUTER,
    WORKER,
    Client,
    RayFleet,
    cancel,
    clients_of,
    running_ray_fleet,
)
from worker_orcd.client import Client as LibraryClient
from worker_orcd.client.job import Job
from worker_orcd.testing.harness import wait_until

pytestmark = [pytest.mark.needs("ray"), pytest.mark.timeout(1200)]

CANCELS = int(os.environ.get("FLEET_CANCELS", "80"))
DEATHS = int(os.environ.get("FLEET_DEATHS", str(max(2, CANCELS // 40))))
"""How many workers and routers are killed at least."""
MINUTES = float(os.environ.get("FLEET_MINUTES", "0"))
"""How long workers and routers are killed at least."""
STREAMS = 40
WORKERS = 3
CELLS = WORKERS * 16384
TOKEN_MS = int(os.environ.get("FLEET_TOKEN_MS", "15"))
"""Time between two tokens of a stream. Twelve streams at 15 ms need more than two cores."""
STORY = {"prompt": f'{{"token_ms": {TOKEN_MS}}}', "max_tokens": 2000, "seed": 7}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Three workers and two routers. Two of the workers have a slot for each of the forty streams."""
    folder = tmp_path_factory.mktemp("fleet")
    with running_ray_fleet(folder, WORKERS, 2, "--parallel", str(STREAMS // 2)) as running:
        yield running


def wait_until_whole(fleet: RayFleet) -> None:
    """Wait until Serve has replaced what was killed."""
    wait_until(lambda: fleet.whole(WORKERS, CELLS), within_sec=120.0, what="a whole fleet")


def test_a_worker_is_killed_under_forty_streams(fleet: RayFleet) -> None:
    """Each stream stays open, without a gap, and has the text that it would have had."""

    async def streams() -> tuple[Client, list[Client]]:
        async with clients_of(fleet) as http:
            story = STORY | {"max_tokens": 120}
            alone = await Client(http, "alone", story).run()
            clients = [Client(http, f"story-{n}", story) for n in range(STREAMS)]
            reading = [asyncio.ensure_future(client.run()) for client in clients]
            for client in clients[: STREAMS // 2]:
                await client.seen(5)
            fleet.kill(WORKER)
            return alone, await asyncio.gather(*reading)

    alone, clients = asyncio.run(streams())
    assert {client.text for client in clients} == {alone.text}
    assert all(client.last.get("stop_reason") == "length" for client in clients)
    assert not any(client.breaks for client in clients)
    gaps = sorted(client.largest_gap for client in clients)
    print(
        f"{STREAMS} streams, one of {WORKERS} workers killed: largest gap {gaps[-1]:.2f} s, median {gaps[20]:.2f} s"
    )
    wait_until_whole(fleet)


def test_clients_come_back_by_themselves_when_their_router_is_killed(fleet: RayFleet) -> None:
    """Those of the client library, with `resume=True`: through another router, without a gap."""
    wait_until_whole(fleet)
    sampling: dict[str, Any] = {"max_tokens": 150, "seed": 7, "resume": True}

    async def read(job: Job) -> str:
        async with job:
            assert [token.index async for token in job] == list(range(150))
        return job.text

    async def streams() -> tuple[str, list[str], list[Job]]:
        async with LibraryClient(fleet.url) as client:
            alone = await read(client.execute(str(STORY["prompt"]), **sampling))
            jobs = [client.execute(str(STORY["prompt"]), **sampling) for _ in range(STREAMS // 2)]
            reading = [asyncio.ensure_future(read(job)) for job in jobs]
            while not all(len(job.text) > 20 for job in jobs):  # noqa: ASYNC110  # A job has no event for it.
                await asyncio.sleep(0.02)
            fleet.kill(ROUTER)
            return alone, await asyncio.gather(*reading), jobs

    alone, texts, jobs = asyncio.run(streams())
    came_back = sum(job._back._found_at > 0 for job in jobs)
    print(f"{came_back} of {len(jobs)} streams came back through another router")
    assert set(texts) == {alone}
    assert came_back > 0
    wait_until_whole(fleet)


def test_no_cancel_is_missed_while_workers_and_routers_are_killed(fleet: RayFleet) -> None:
    """Each stops its own job, once; the jobs of others reach their natural ends."""
    wait_until_whole(fleet)
    chaos = Chaos(
        fleet,
        STORY,
        cancels=CANCELS,
        deaths=2 if MINUTES else DEATHS,
        until=time.monotonic() + 60 * MINUTES,
        whole=lambda: asyncio.to_thread(wait_until_whole, fleet),
    )
    asyncio.run(chaos.run())
    chaos.report()
    ended = [client for client in chaos.stopped if client.events]
    wrong = [(client.job_id, client.last) for client in ended if client.last.get("reason") != "client"]
    assert not wrong
    assert {client.last["code"] for client in ended} == {"CANCELLED"}
    assert {client.last.get("stop_reason") for client in chaos.neighbours} == {"length"}
    (text,) = {client.text for client in chaos.neighbours}
    assert all(text.startswith(client.text) or client.text.startswith(text) for client in ended)
    assert len(ended) > 0.8 * len(chaos.stopped)
    assert chaos.groups > 0
    again = [client for client in chaos.again if client.ended]
    assert {client.last.get("stop_reason") for client in again} == {"length"}
    assert len(again) > 0.5 * len(chaos.stopped)
    assert max(chaos.ended) < 6.0


def test_a_frozen_worker_delays_no_other_cancel(fleet: RayFleet) -> None:
    """Cancels are answered meanwhile; a job of the frozen worker itself ends within the five seconds."""
    wait_until_whole(fleet)
    frozen: list[int] = []
    ended: list[float] = []

    async def stopped() -> list[Client]:
        async with clients_of(fleet) as http:
            clients = [Client(http, f"frozen-{n}", STORY) for n in range(12)]
            reading = [asyncio.ensure_future(client.run()) for client in clients]
            for client in clients:
                await client.seen(1)
            frozen.append(fleet.kill(WORKER, signal.SIGSTOP))
            asked = {}
            for client in clients:
                asked[client] = time.monotonic()
                assert await cancel(http, client.job_id) - asked[client] < 2.0  # On a busy machine.
            await asyncio.gather(*reading)
            ended.extend(client.ended_at - asked[client] for client in clients)
            return clients

    try:
        clients = asyncio.run(stopped())
    finally:
        os.kill(frozen[0], signal.SIGCONT)
    assert all(client.last.get("code") == "CANCELLED" for client in clients)
    assert max(ended) < 5.5
    print("beside a frozen worker, s:", sorted(round(one, 2) for one in ended))
    assert sum(one < 2.0 for one in ended) >= 6
    wait_until_whole(fleet)


def test_routers_and_workers_are_no_less_important_than_other_processes(fleet: RayFleet) -> None:
    """Ray would run them with niceness 15."""
    own = psutil.Process().nice()
    assert {psutil.Process(pid).nice() for pid in fleet.pids(ROUTER) + fleet.pids(WORKER)} == {own}


def test_nothing_is_left_running(fleet: RayFleet) -> None:
    """No job without an owner, no cell in use, and no engine without a worker."""

    def idle() -> bool:
        looks = [fleet.health() for _ in range(6)]  # At either router.
        return all((look.get("jobs_running"), look.get("kv_cells_used")) == (0, 0) for look in looks)

    wait_until(idle, within_sec=15.0, what="no running job and no cell in use")

    def engines_are_owned() -> bool:
        workers = map(psutil.Process, fleet.pids(WORKER))
        owned = {child.pid for worker in workers for child in worker.children(recursive=True)}
        return set(fleet.engines()) <= owned

    wait_until(engines_are_owned, within_sec=15.0, what="no engine without a worker")
    assert len(fleet.engines()) >= WORKERS
