"""`POST /v1/embeddings`: jobs of one prompt and no tokens, which end as all jobs do."""

import base64
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import OpenAI

from tests.helpers import at_rest, ended_state, fresh_id, receipt_of, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

LONG = {"row_ms": 1}


def embedded(worker: RunningWorker, **body: Any) -> list[list[float]]:
    """The vectors, in the order of the inputs."""
    answer = worker.client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return [one["embedding"] for one in data]


def slow(length: int = 3000) -> str:
    """An input that takes three seconds."""
    return script(length, row_ms=1)


@contextmanager
def asking(worker: RunningWorker, inputs: Any, job_id: str) -> Iterator["Future[httpx2.Response]"]:
    """A request in another thread, once its first job exists."""
    with ThreadPoolExecutor(1) as client:
        headers = {"X-Job-Id": job_id}
        answer = client.submit(worker.client.post, "/v1/embeddings", json={"input": inputs}, headers=headers)
        wait_until(lambda: worker.client.get(f"/jobs/{job_id}").status_code == 200, what="a job")
        yield answer


def test_each_input_gets_a_vector_of_length_one(worker: RunningWorker) -> None:
    """The same for the same text, alone or among others, as text or as token ids."""
    texts = ["the sea", "a ship", "the sea"]
    vectors = embedded(worker, input=texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
    assert vectors[0] == vectors[2] != vectors[1]
    assert embedded(worker, input="a ship") == [vectors[1]]
    assert embedded(worker, input=list(b"a ship")) == [vectors[1]]
    assert embedded(worker, input=[list(text.encode()) for text in texts]) == vectors


def test_vectors_come_as_base64_too(worker: RunningWorker) -> None:
    """As OpenAI's packages ask for them."""
    plain = embedded(worker, input=["a", "b"], encoding_format="float")
    for vector, coded in zip(
        plain, embedded(worker, input=["a", "b"], encoding_format="base64"), strict=True
    ):
        assert np.frombuffer(base64.b64decode(str(coded)), "<f4").tolist() == vector
    client = OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="scripted", input=["a", "b"])
    assert [one.embedding for one in answer.data] == plain
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (2, 2)


def test_dimensions_are_the_first_ones_at_length_one(worker: RunningWorker) -> None:
    """As models are trained for it."""
    (whole,), (cut,) = embedded(worker, input="a"), embedded(worker, input="a", dimensions=3)
    assert cut == pytest.approx(np.array(whole[:3]) / np.linalg.norm(whole[:3]), rel=1e-6)
    answer = worker.client.post("/v1/embeddings", json={"input": "a", "dimensions": len(whole) + 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [50_000]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input": "a", "embd_normalize": -1}, "embd_normalize"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_request_is_refused_by_its_field(
    worker: RunningWorker, body: dict[str, Any], param: str
) -> None:
    """And so is what cannot be kept."""
    answer = worker.client.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_an_input_that_does_not_fit_is_refused_with_the_code_that_clients_know(worker: RunningWorker) -> None:
    """One that fills the context is not: nothing is generated."""
    answer = worker.client.post("/v1/embeddings", json={"input": ["a", "x" * 8193]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    assert "left for output" not in error["message"]
    assert embedded(worker, input=script(8192, row_ms=0.001))
    at_rest(worker)


def test_each_input_is_a_job_with_a_record(worker: RunningWorker) -> None:
    """Without tokens, without events to read again; the first is named as the request is."""
    job_id = fresh_id("embed")
    headers = {"X-Job-Id": job_id}
    answer = worker.client.post("/v1/embeddings", json={"input": ["a", "bb"]}, headers=headers)
    assert answer.headers["x-job-id"] == job_id
    for name, tokens in ((job_id, 1), (f"{job_id}.1", 2)):
        record = worker.record(name)
        assert (record["state"], record["prompt_tokens"], record["tokens_out"]) == ("completed", tokens, 0)
        assert worker.client.get(f"/jobs/{name}/events").status_code == 404


@pytest.mark.parametrize("by", ["job_id", "group"])
def test_a_cancel_in_the_middle_of_a_long_input_frees_all_of_it(worker: RunningWorker, by: str) -> None:
    """Whatever of the request was done before; the answer is a status that no client retries."""
    job_id = fresh_id("embed")
    with asking(worker, ["short", slow(), slow()], job_id) as asked:
        second = f"{job_id}.1"
        wait_until(lambda: worker.record(job_id)["ended_ms"] is not None, what="the end of the first input")
        wait_until(lambda: worker.record(second)["prompt_tokens_processed"] > 0, what="some prefill")
        assert worker.client.post("/cancel", json={by: job_id}).status_code == 202
        answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CANCELLED")
    receipt = receipt_of(worker, second)
    assert (receipt["phase"], receipt["kv_cells_after"]) == ("prefill", 0)
    assert 0 < receipt["prompt_tokens"] < 3000
    at_rest(worker)
    if by == "job_id":
        retried = worker.client.post("/v1/embeddings", json={"input": "a"}, headers={"X-Job-Id": job_id})
        assert (retried.status_code, retried.json()["error"]["code"]) == (400, "CANCELLED")


def test_a_cancel_that_comes_first_wins(worker: RunningWorker) -> None:
    """Nothing is computed, of no input."""
    job_id = fresh_id("embed")
    worker.cancel(job_id)
    answer = worker.client.post("/v1/embeddings", json={"input": ["a"] * 100}, headers={"X-Job-Id": job_id})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CANCELLED")
    at_rest(worker)


def test_leaving_stops_all_inputs(worker: RunningWorker) -> None:
    """Those that wait, and the one that is being computed."""
    job_id = fresh_id("embed")
    with pytest.raises(httpx2.ReadTimeout):
        worker.client.post(
            "/v1/embeddings",
            json={"input": [slow() for _ in range(20)]},
            headers={"X-Job-Id": job_id},
            timeout=0.7,
        )
    assert receipt_of(worker, job_id, "disconnect")["kv_cells_after"] == 0
    at_rest(worker)


def test_a_large_request_leaves_the_queue_to_others(worker: RunningWorker) -> None:
    """Its inputs are submitted a window at a time, more than the queue would take; all are answered in order."""
    inputs = [f"{number}" for number in range(700)]
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(embedded, worker, input=inputs)
        waiting = []
        while not asked.done():
            waiting.append(worker.health()["jobs_queued"])
            time.sleep(0.01)
    assert max(waiting, default=0) <= 64
    vectors = asked.result()
    assert len({tuple(vector) for vector in vectors}) == 700
    assert embedded(worker, input="699") == [vectors[699]]


def test_an_input_goes_on_after_its_engine_was_killed() -> None:
    """It is requeued, and the vector is the same."""
    text = script(2000, row_ms=0.5)
    job_id = fresh_id("embed")
    with running_worker(parallel=2) as worker:
        with asking(worker, [text, "b"], job_id) as asked:
            wait_until(lambda: worker.record(job_id)["state"] == "running", what="a running job")
            os.kill(worker.health()["engine_pid"], signal.SIGKILL)
            answer = asked.result()
        assert answer.status_code == 200, answer.text
        assert [one["embedding"] for one in answer.json()["data"]] == embedded(worker, input=[text, "b"])
        assert ended_state(worker, job_id)["requeues"] == 1
        at_rest(worker)
