"""A request of many jobs outlives a moment in which no worker takes any. In virtual time."""

import asyncio

import httpx2
import pytest

from tests.fleet.test_fleet import in_virtual_time
from tests.fleet.world import Fleet, running_fleet
from worker_orcd.api.app import create_app

INPUTS = 200
"""More than are live at a time."""
HELD_SEC = 4.5
"""Longer than a router waits for two workers, one after the other."""


async def taking_nothing(fleet: Fleet) -> None:
    """When a batch has begun, no worker takes jobs for a while; those that it has go on."""
    while fleet.called["execute"] < 3:  # noqa: ASYNC110  # A counter has no event to wait for.
        await asyncio.sleep(0.001)
    again = asyncio.Event()
    for node in fleet.nodes:
        node.held["execute"] = again
    await asyncio.sleep(HELD_SEC)
    again.set()


@pytest.mark.parametrize("seed", range(3))
@in_virtual_time
async def test_a_batch_of_embeddings_outlives_a_moment_in_which_no_worker_takes_jobs(seed: int) -> None:
    """The inputs that none took are sent again as long as others are live."""
    async with running_fleet(workers=2, seed=seed) as fleet:
        app = create_app(fleet.routers[0], fleet.narrators[0], lambda _: None)
        holding = asyncio.ensure_future(taking_nothing(fleet))
        body = {"input": [f"text {number}" for number in range(INPUTS)]}
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            answer = await http.post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        assert [one["index"] for one in answer.json()["data"]] == list(range(INPUTS))
        await holding
        assert not any(node.live for node in fleet.nodes)
