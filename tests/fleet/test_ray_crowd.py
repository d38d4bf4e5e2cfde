"""Cancels in a fleet whose routers have a thousand open streams, and whose workers are full (contract, 12)."""

import asyncio
import random
import socket
from collections.abc import Iterator

import pytest

from tests.fleet.ray_fleet import Client, RayFleet, cancel, clients_of, running_ray_fleet
from worker_orcd.testing.harness import wait_until

pytestmark = [pytest.mark.needs("ray"), pytest.mark.nightly, pytest.mark.timeout(900)]

STREAMS = 1000
RUNNING = 128
"""Jobs that have a slot: the others wait, with their streams open."""
STALLED = 5
CANCELS = 100
SLOWLY = {"prompt": '{"token_ms": 5000}', "max_tokens": 2000}
OPENED_SEC = 0.03
"""Between two of them."""
DEADLINE_SEC = 5.0


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Two workers and two routers."""
    folder = tmp_path_factory.mktemp("crowd")
    options = ("--parallel", str(RUNNING // 2), "--max-queue", str(STREAMS))
    with running_ray_fleet(folder, 2, 2, *options) as running:
        yield running


def stalled(fleet: RayFleet, job_id: str) -> socket.socket:
    """A client that requests a job and never reads."""
    body = f'{{"job_id": "{job_id}", "prompt": "{{\\"token_ms\\": 50}}", "max_tokens": 2000}}'.encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", int(fleet.url.rpartition(":")[2])))
    head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def test_a_cancel_does_not_wait_behind_a_thousand_streams(fleet: RayFleet) -> None:
    """Neither of a job that runs, nor of one that waits, nor of one whose client does not read."""

    async def stopped() -> tuple[list[float], list[float], list[Client]]:
        async with clients_of(fleet, STREAMS + 50) as http:
            crowd = [Client(http, f"crowd-{n}", SLOWLY) for n in range(STREAMS)]
            reading = {}
            for client in crowd:
                reading[client] = asyncio.ensure_future(client.run())
                await asyncio.sleep(OPENED_SEC)
            await asyncio.to_thread(
                wait_until,
                lambda: fleet.health().get("jobs_queued", 0) >= STREAMS - RUNNING,
                within_sec=60.0,
                what="a thousand streams",
            )
            answered, ended = [], []
            clock = asyncio.get_running_loop().time
            chosen = random.Random(7).sample(crowd, CANCELS)
            for client in chosen:
                asked = clock()
                answered.append(await cancel(http, client.job_id) - asked)
                await asyncio.wait_for(reading[client], 30)
                ended.append(client.ended_at - asked)
            for client in set(crowd) - set(chosen):
                assert not client.ended
                reading[client].cancel()
            return answered, ended, chosen

    unread = [stalled(fleet, f"stalled-{n}") for n in range(STALLED)]
    answered, ended, chosen = asyncio.run(stopped())
    for what, times in (("answer", sorted(answered)), ("terminal event", sorted(ended))):
        print(f"{what}: p50 {times[CANCELS // 2]:.3f} s, p99 {times[-2]:.3f} s, longest {times[-1]:.3f} s")
    assert all(client.last["code"] == "CANCELLED" for client in chosen)
    assert max(ended) < DEADLINE_SEC
    for client_socket in unread:
        client_socket.close()
