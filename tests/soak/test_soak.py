"""Thousands of jobs, half of them stopped at random moments: memory, descriptors, cells and tasks stay flat (G4, G10).

`make soak` runs 10,000 on each engine, the deep lane a sample (SOAK_JOBS): it finds what grows by 12 KB a job on the
scripted engine and by 140 KB a job on the real one, `make soak` what grows by 1.2 KB.
"""

import asyncio
import json
import os
import random
import statistics
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil
import pytest

from tests.helpers import at_rest, own_memory, script
from worker_orcd.testing.harness import EngineKind, RunningWorker, running_worker

SOAK_JOBS = int(os.environ.get("SOAK_JOBS", "0"))
"""How many; 0 is a short one."""
SHORT: dict[EngineKind, int] = {"scripted": 1000, "llama": 100}
AT_ONCE = 24
"""Clients at a time; sixteen of their jobs run, the rest wait."""
IDS = 200
"""They are used again and again, so that records, which are kept a while, are as many soon and stay as many."""
SAMPLES = 8
GROWTH_MB = 8
"""More memory than this after the first quarter is no allocator's noise."""
STORE_MIB = 1
"""Of the prefix store: it is full soon."""
SLACK = 4
"""Connections that are just being closed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What front and engine hold while nothing runs."""

    front_mb: float
    engine_mb: float
    descriptors: int
    threads: int
    tasks: int
    stored_mb: float


def look(worker: RunningWorker) -> Sample:
    """Wait until it is at rest and count."""
    at_rest(worker)
    front, engine = psutil.Process(worker.process.pid), psutil.Process(worker.engine_pid)
    metrics = dict(
        line.rsplit(" ", 1)
        for line in worker.client.get("/metrics").text.splitlines()
        if not line.startswith("#")
    )
    assert float(metrics["worker_audit_faults_total"]) == 0
    return Sample(
        front_mb=own_memory(front) / 1e6,
        engine_mb=own_memory(engine) / 1e6,
        descriptors=front.num_fds() + engine.num_fds(),
        threads=front.num_threads() + engine.num_threads(),
        tasks=int(float(metrics["worker_event_loop_tasks"])),
        stored_mb=float(metrics["worker_prefix_store_bytes"]) / 1e6,
    )


class Crowd:
    """Clients that run one job after the other; every second job is stopped, by one way or another."""

    def __init__(self, worker: RunningWorker, engine: EngineKind, chance: random.Random) -> None:
        self.worker = worker
        self.engine = engine
        self.chance = chance
        self.endings: dict[str, int] = {}

    async def run(self, jobs: int) -> None:
        """So many jobs in all, a fixed number at a time."""
        numbers = iter(range(jobs))
        limits = httpx2.Limits(max_connections=3 * AT_ONCE)
        async with httpx2.AsyncClient(
            base_url=self.worker.url, timeout=120.0, limits=limits, trust_env=False
        ) as client:
            free = [f"soak-{n}" for n in range(IDS)]
            await asyncio.gather(*(self._one_after_the_other(client, numbers, free) for _ in range(AT_ONCE)))

    async def _one_after_the_other(self, client: httpx2.AsyncClient, numbers: "Any", free: list[str]) -> None:
        for number in numbers:
            job_id = free.pop(0)
            ending = await self._job(client, job_id, stopped=number % 2 == 1)
            self.endings[ending] = self.endings.get(ending, 0) + 1
            free.append(job_id)

    async def _job(self, client: httpx2.AsyncClient, job_id: str, *, stopped: bool) -> str:
        """One job; how it ended. A stopped one is cancelled at a random event, or left."""
        body = {"job_id": job_id, **self._asked(stopped=stopped)}
        moment = self.chance.choice([0, 0, 1, 2, 4]) if stopped else None
        leaves = stopped and self.chance.random() < 0.2
        seen, ending = 0, "left"
        async with client.stream("POST", "/execute", json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            if moment == 0 and leaves:
                return "left"
            if moment == 0:
                await self._cancel(client, job_id)
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    seen += 1
                if line.startswith("data: ") and seen and ending == "left":
                    data = json.loads(line.removeprefix("data: "))
                    ending = data.get("code") or data.get("stop_reason") or "left"
                if seen == moment and line == "":
                    if leaves:
                        return "left"
                    await self._cancel(client, job_id)
                    moment = -1
        return str(ending)

    async def _cancel(self, client: httpx2.AsyncClient, job_id: str) -> None:
        answer = await client.post("/cancel", json={"job_id": job_id})
        assert answer.status_code == 202

    def _asked(self, *, stopped: bool) -> dict[str, Any]:
        length = self.chance.choice([10, 60, 300])
        if self.engine == "scripted":
            return {
                "prompt": script(length, token_ms=0.5, row_ms=0.02),
                "max_tokens": 500 if stopped else self.chance.randint(1, 20),
            }
        words = " ".join(self.chance.choice(["sea", "wind", "stone", "light"]) for _ in range(length // 6))
        return {
            "prompt": words,
            "max_tokens": 500 if stopped else self.chance.randint(1, 10),
            "ignore_eos": stopped,
        }


@pytest.mark.parametrize("engine", ["scripted", pytest.param("llama", marks=pytest.mark.real)])
def test_nothing_grows_over_many_jobs(engine: EngineKind) -> None:
    """Half of them are stopped. Counted at rest, again and again, after the first quarter."""
    jobs = SOAK_JOBS or SHORT[engine]
    with running_worker(engine, prefix_cache_mib=STORE_MIB) as worker:
        crowd = Crowd(worker, engine, random.Random(7))
        asyncio.run(crowd.run(jobs // 4))
        samples = [look(worker)]
        for _ in range(SAMPLES):
            # An even number, so that every round stops half of its jobs.
            asyncio.run(crowd.run(jobs * 3 // 8 // SAMPLES * 2))
            samples.append(look(worker))
        print(f"\n{engine}: {sum(crowd.endings.values())} jobs, {crowd.endings}")
        for sample in samples:
            print(f"  {sample}")
        assert set(crowd.endings) <= {"CANCELLED", "length", "stop", "left"}
        stopped = crowd.endings["CANCELLED"] + crowd.endings["left"]
        assert stopped >= 0.49 * sum(crowd.endings.values())
        first, last = samples[0], samples[-1]
        later = samples[-3:]
        assert statistics.median(s.front_mb for s in later) - first.front_mb < GROWTH_MB
        assert statistics.median(s.engine_mb for s in later) - first.engine_mb < GROWTH_MB
        assert last.descriptors <= first.descriptors + SLACK
        assert last.threads <= first.threads + SLACK
        assert last.tasks <= first.tasks + SLACK
        assert 0 < last.stored_mb <= STORE_MIB * 2**20 / 1e6
        assert_no_engine_was_lost(worker, jobs)


def assert_no_engine_was_lost(worker: RunningWorker, jobs: int) -> None:
    """But for one that did not answer for seconds: on a machine whose cores are all taken that is no fault of its own,
    as long as it is rare."""
    why = [event["why"] for event in worker.narration() if event["action"] == "engine_lost"]
    unanswered = [reason for reason in why if "does not confirm a stop" in reason or "not answered" in reason]
    assert why == unanswered
    assert len(why) <= 1 + jobs // 5000, why
    assert worker.health()["engine_restarts"] == len(why)
