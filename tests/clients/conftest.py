"""A worker, and OpenAI's own client for it."""

import json
from collections.abc import Collection, Iterator

import openai
import pytest

from tests.helpers import SLOW, at_rest, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

PAGE = "docs/clients.md"


@pytest.fixture(scope="session")
def _served() -> Iterator[RunningWorker]:
    with running_worker(max_queue=4, parallel=4, cancel_memory_sec=60) as served:
        yield served


@pytest.fixture
def served(_served: RunningWorker) -> Iterator[RunningWorker]:
    """A worker on the scripted engine: four jobs run, four may wait. It must be at rest afterwards."""
    yield _served.ready()
    at_rest(_served)


@pytest.fixture
def client(served: RunningWorker) -> Iterator[openai.OpenAI]:
    """OpenAI's client, as people use it."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=20) as made:
        yield made


def accepted(worker: RunningWorker) -> int:
    """The number of jobs that this worker accepted and that have ended."""
    total = 0.0
    for line in worker.client.get("/metrics").text.splitlines():
        if line.startswith("worker_requests_total"):
            total += float(line.rsplit(" ", 1)[1])
    return int(total)


def as_here(example: str, worker: RunningWorker) -> str:
    """An example of `PAGE`, changed to the address and the model's name of the test's worker."""
    there = {
        "http://127.0.0.1:8080": worker.url,
        "my-model": "scripted",
        '"Write a long story."': json.dumps(SLOW),
    }
    for shown, here in there.items():
        example = example.replace(shown, here)
    return example


def prompt_for(phase: str) -> str:
    """A prompt whose job is slow in one phase, `prefill` or `decode`."""
    return script(8000, row_ms=5) if phase == "prefill" else SLOW


def generated(worker: RunningWorker, job_id: str, tokens: int) -> None:
    """Wait until a job has generated so many tokens."""
    wait_until(
        lambda: (worker.record(job_id).get("tokens_out") or 0) >= tokens,
        within_sec=60,
        what=f"{tokens} tokens",
    )


def next_job(worker: RunningWorker, seen: Collection[str]) -> str:
    """Wait until a job is live that has not been seen, and return its id."""

    def look() -> str | None:
        live = worker.client.get("/jobs?limit=0").json()["jobs"]
        return next((job["job_id"] for job in live if job["job_id"] not in seen), None)

    return wait_until(look, within_sec=60, what="a job")


def in_phase(worker: RunningWorker, job_id: str, phase: str) -> None:
    """Wait until some of a job's prompt is computed, or until it generates."""
    if phase == "decode":
        generated(worker, job_id, 3)
    else:
        counted = "prompt_tokens_processed"
        wait_until(lambda: (worker.record(job_id).get(counted) or 0) > 0, within_sec=60, what=counted)
