"""Streams of a worker that allows another site's pages (`--cors-origin`)."""

from collections.abc import Iterator

import pytest

from tests.helpers import ended_state, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker

APP = "https://app.example"


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningWorker]:
    """It has room for one running job and one waiting job."""
    with running_worker(cors_origin=APP, parallel=1, max_queue=1) as worker:
        yield worker


def asked_by(worker: RunningWorker, origin: str, name: str) -> Stream:
    """A job that a page of this origin starts."""
    body = {"job_id": fresh_id(name), "prompt": script(token_ms=5)}
    return Stream(worker, body, {"Origin": origin})


def test_a_pages_stream_comes_token_by_token_and_leaving_stops_its_job(shared: RunningWorker) -> None:
    """A header that the page may read names the job. The page can also read the refusal of a full queue."""
    running = asked_by(shared, APP, "running").tokens_seen(2)
    assert running.closed_at is None, "the stream is not held back until its end"
    assert running.headers["access-control-allow-origin"] == APP
    assert "X-Job-Id" in running.headers["access-control-expose-headers"]
    assert running.headers["x-job-id"] == running.job_id
    waiting = asked_by(shared, APP, "waiting").wait(lambda s: s.status is not None)
    refused = asked_by(shared, APP, "refused").wait(lambda s: s.status is not None)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (429, APP)
    for left in (waiting, running):
        left.leave()
        receipt = ended_state(shared, left.job_id)["receipt"]
        assert isinstance(receipt, dict)
        assert receipt["reason"] == "disconnect"
