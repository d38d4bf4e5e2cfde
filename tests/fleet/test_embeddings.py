"""Batches of embeddings at a fleet on Ray: both workers compute their inputs, and one stop ends all of them."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.fleet.ray_fleet import REAL, RayFleet, cancel, clients_of, running_ray_fleet
from tests.models.test_embeddings import TOLERANCE, by_llama_cpp
from tests.models.test_worker import some_text
from tests.tiny import TinyModels
from worker_orcd.api.openai.embeddings import WINDOW
from worker_orcd.testing.harness import wait_until

pytestmark = [pytest.mark.needs("ray"), pytest.mark.real, pytest.mark.nightly, pytest.mark.timeout(900)]

CELLS = 8192
INPUTS = 300
BEGUN = WINDOW + 16
"""More than are live at a time: later ones go to whichever worker is less busy."""
COMPARED = 25
"""Each input whose number this divides is computed without a worker, too."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_models: TinyModels) -> Iterator[RayFleet]:
    """Two workers on a tiny encoder, and two routers."""
    options = ["--model", str(tiny_models.path("bert", "F32")), "--embeddings", "--pooling", "last"]
    options += ["--parallel", "4", "--threads", "1"]
    folder = tmp_path_factory.mktemp("encoders")
    with running_ray_fleet(folder, 2, 2, *options, program=REAL, cells=CELLS) as running:
        yield running


async def parts(http: httpx2.AsyncClient, name: str) -> list[dict[str, Any]]:
    """The records of a request's jobs."""
    jobs = (await http.get("/jobs?limit=1000")).json()["jobs"]
    return [job for job in jobs if job["job_id"].partition(".")[0] == name]


def test_both_workers_compute_a_batch(fleet: RayFleet, tiny_models: TinyModels) -> None:
    """Each input gets its own embedding, in its place."""
    texts = [some_text(n, 20 + n % 7) for n in range(INPUTS)]
    asked = {"input": texts}
    said = httpx2.post(f"{fleet.url}/v1/embeddings", json=asked, trust_env=False, timeout=240.0)
    assert said.status_code == 200, said.text
    answer = said.json()
    assert [one["index"] for one in answer["data"]] == list(range(INPUTS))
    compared = range(0, INPUTS, COMPARED)
    vectors = np.array([answer["data"][n]["embedding"] for n in compared])
    alone = by_llama_cpp(tiny_models.path("bert", "F32"), [texts[n] for n in compared], "last")
    assert np.abs(vectors - alone).max() < TOLERANCE
    assert np.abs(vectors - alone[::-1]).max() > 10 * TOLERANCE  # Those of other texts differ.
    handed = [count for count in fleet.routed().values() if count]
    assert (len(handed), sum(handed)) == (2, INPUTS)


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_a_stopped_batch_leaves_nothing(fleet: RayFleet, how: str) -> None:
    """The jobs that run and wait are stopped at both workers, and inputs that were not sent yet never are."""
    name = f"batch-{how}"

    async def stop() -> list[dict[str, Any]]:
        async with clients_of(fleet) as http:
            body = {"input": [some_text(n, 150) for n in range(INPUTS)], "cache_prompt": False}
            asking = asyncio.ensure_future(
                http.post("/v1/embeddings", json=body, headers={"X-Job-Id": name}, timeout=120.0)
            )
            while len(await parts(http, name)) < BEGUN:
                assert not asking.done(), asking.result().text
                await asyncio.sleep(0.3)  # Each look asks all workers.
            if how == "cancel":
                await cancel(http, name)
                answer = await asking
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CANCELLED")
            else:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            jobs = await parts(http, name)
            while any(job["ended_ms"] is None for job in jobs):
                jobs = await parts(http, name)
            return jobs

    jobs = asyncio.run(asyncio.wait_for(stop(), 240))

    def idle() -> bool:
        health = fleet.health()  # As workers last reported.
        return (health["jobs_running"], health["jobs_queued"], health["kv_cells_used"]) == (0, 0, 0)

    wait_until(idle, what="idle workers")
    states = {job["state"] for job in jobs}
    assert len(jobs) < INPUTS
    assert states == {"completed", "cancelled"}, states
    later = [job for job in jobs if int(job["job_id"].partition(".")[2] or 0) >= WINDOW]
    assert any(job["state"] == "cancelled" for job in later)
    reasons = Counter(job["receipt"]["reason"] for job in jobs if job["state"] == "cancelled")
    if how == "leave":
        assert set(reasons) == {"disconnect"}
    else:  # When the first one has ended, the request leaves those that the cancel has not reached yet.
        assert set(reasons) <= {"client", "disconnect"}
        assert reasons["client"] > reasons.total() / 4
    assert len(asyncio.run(_again(fleet, name))) == len(jobs)


async def _again(fleet: RayFleet, name: str) -> list[dict[str, Any]]:
    async with clients_of(fleet) as http:
        return await parts(http, name)
