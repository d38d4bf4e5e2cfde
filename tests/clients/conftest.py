"""A worker, and OpenAI's own client for it."""

from collections.abc import Iterator

import openai
import pytest

from tests.helpers import at_rest
from worker_orcd.testing.harness import RunningWorker, running_worker


@pytest.fixture(scope="session")
def _served() -> Iterator[RunningWorker]:
    with running_worker(max_queue=4, parallel=4) as served:
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
    """Jobs that this worker has ever taken in and that have ended."""
    total = 0.0
    for line in worker.client.get("/metrics").text.splitlines():
        if line.startswith("worker_requests_total"):
            total += float(line.rsplit(" ", 1)[1])
    return int(total)
