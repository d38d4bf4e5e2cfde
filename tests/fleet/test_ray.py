"""A fleet on Ray, with real processes (G17): none of its cancels is missed, and no stream is torn, while they die."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.fleet.ray_fleet import (
    ROUTER,
    WORKER,
    Client,
    RayFleet,
    cancel,
    clients_of,
    running_ray_fleet,
)
from worker_orcd.testing.harness import wait_until

pytestmark = [pytest.mark.needs("ray"), pytest.mark.timeout(1200)]

CANCELS = int(os.environ.get("FLEET_CANCELS", "80"))
STREAMS = 40
WORKERS = 3
CELLS = WORKERS * 16384
STORY = {"prompt": '{"token_ms": 15}', "max_tokens": 2000, "seed": 7}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Three workers and two routers."""
    with running_ray_fleet(tmp_path_factory.mktemp("fleet"), WORKERS, 2) as running:
        yield running


def wait_until_whole(fleet: RayFleet) -> None:
    """Wait until Serve has replaced what was killed."""
    wait_until(lambda: fleet.whole(WORKERS, CELLS), within_sec=120.0, what="a whole fleet")


def shown(name: str, seconds: list[float]) -> str:
    """p50, p99 and the longest, in ms."""
    ordered = sorted(1000 * one for one in seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"{name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {ordered[-1]:.0f} ms of {len(ordered)}"


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
    wait_until_whole(fleet)


def test_no_cancel_is_missed_while_workers_and_routers_are_killed(fleet: RayFleet) -> None:
    """Each stops its own job, once; the jobs of others reach their natural ends."""
    answered: list[float] = []
    ended: list[float] = []

    async def cancelled(client: Client) -> Client:
        running = asyncio.ensure_future(client.run())
        await asyncio.sleep(random.uniform(0.0, 1.0))
        asked = time.monotonic()
        answered.append(await cancel(client.http, client.job_id) - asked)
        client.cancelled = True
        await running
        if client.events:
            ended.append(client.ended_at - asked)
        return client

    async def killing() -> None:
        for number in range(max(2, CANCELS // 40)):
            await asyncio.sleep(random.uniform(1.0, 2.0))
            fleet.kill(WORKER if number % 2 == 0 else ROUTER)
            await asyncio.to_thread(wait_until_whole, fleet)

    async def chaos() -> tuple[list[Client], list[Client]]:
        async with clients_of(fleet) as http:
            others = [Client(http, f"other-{n}", STORY | {"max_tokens": 400}) for n in range(4)]
            reading = [asyncio.ensure_future(client.run()) for client in others]
            killer = asyncio.ensure_future(killing())
            stopped: list[Client] = []
            number = 0
            while number < CANCELS or not killer.done():
                batch = [Client(http, f"cancelled-{number + n}", STORY) for n in range(8)]
                number += len(batch)
                stopped += await asyncio.gather(*map(cancelled, batch))
            await killer
            return stopped, await asyncio.gather(*reading)

    stopped, others = asyncio.run(chaos())
    print(shown("answer to a cancel", answered), shown("terminal event", ended), sep="\n")
    ends = [(client.job_id, client.last) for client in stopped if client.events]
    print(len(stopped) - len(ends), "requests were lost with a router before their jobs began")
    assert not [end for end in ends if end[1].get("code") != "CANCELLED" or end[1]["reason"] != "client"]
    for client in others:
        assert client.last.get("stop_reason") == "length", client.last
    assert len({client.text for client in others}) == 1
    assert len(stopped) >= CANCELS
    assert max(ended) < 6.0


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


def test_nothing_is_left_running(fleet: RayFleet) -> None:
    """No job without an owner, no cell in use."""

    def idle() -> bool:
        looks = [fleet.health() for _ in range(6)]  # At either router.
        return all((look.get("jobs_running"), look.get("kv_cells_used")) == (0, 0) for look in looks)

    wait_until(idle, within_sec=15.0, what="no running job and no cell in use")
