"""Embeddings of tiny models are those that llama-cpp-python computes, whatever happens to the jobs meanwhile."""

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers import at_rest, ended_state, fresh_id, receipt_of
from tests.models.test_worker import some_text
from tests.tiny import TinyModels
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

pytestmark = pytest.mark.real
Vectors = npt.NDArray[np.float64]

DECODERS: dict[str, dict[str, Any]] = {
    "qwen3-embedding": {},
    "llama": {"pooling": "mean"},
    "gemma3": {"pooling": "last"},
    "mamba": {"pooling": "mean"},
    "lfm2": {"pooling": "mean"},
}
# Not "cls": with random weights that vector is nearly the same for all texts, and so any would pass.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"embeddings": True, "pooling": "last"},
    "nomic-bert": {"embeddings": True},
    "gemma-embedding": {"embeddings": True},
}
TEXTS = [
    "the quick brown fox",
    "a ship which came from another country",
    *(some_text(n, 30 * n) for n in (1, 3)),
]
TOLERANCE = 2e-3
"""Largest difference between two components that are the same."""
POOLING = {"mean": 1, "cls": 2, "last": 3}


@pytest.fixture(scope="module", params=[*DECODERS, *ENCODERS])
def served(request: pytest.FixtureRequest, tiny_models: TinyModels) -> Iterator[tuple[RunningWorker, Path]]:
    """A worker on one model, and the model's file."""
    path = tiny_models.path(request.param, "F32")
    options = (DECODERS | ENCODERS)[request.param]
    with running_worker(
        "llama", wait=False, model=path, parallel=4, context_length=8192, threads=1, **options
    ) as worker:
        yield worker.ready(within_sec=120), path


def embedded(worker: RunningWorker, **body: Any) -> Vectors:
    """The vectors of a request."""
    answer = worker.client.post("/v1/embeddings", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]])


def by_llama_cpp(path: Path, texts: list[str], pooling: str | None) -> Vectors:
    """The same, by llama-cpp-python alone."""
    more = {} if pooling is None else {"pooling_type": POOLING[pooling]}
    sizes = {"n_ctx": 2048, "n_batch": 2048, "n_ubatch": 2048}
    model = llama_cpp.Llama(str(path), embedding=True, verbose=False, **sizes, **more)
    vectors = [model.embed(text, normalize=True) for text in texts]
    model.close()
    return np.array(vectors)


def cancelled(worker: RunningWorker, inputs: list[str]) -> httpx2.Response:
    """The answer to a request that is cancelled while some of its inputs are computed, if it is not done before."""
    job_id = fresh_id("embed")
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(
            worker.client.post, "/v1/embeddings", json={"input": inputs}, headers={"X-Job-Id": job_id}
        )

        def begun() -> bool:
            found = worker.client.get(f"/jobs/{job_id}")
            return asked.done() or (found.status_code == 200 and found.json()["state"] != "queued")

        wait_until(begun, within_sec=60, what="some of it")
        worker.cancel(job_id)
        return asked.result()


def pooling_of(path: Path) -> str | None:
    """The option that the worker on this file has."""
    name = path.name.partition("-F32")[0]
    found: str | None = (DECODERS | ENCODERS)[name].get("pooling")
    return found


def test_embeddings_are_those_of_llama_cpp(served: tuple[RunningWorker, Path]) -> None:
    """Of several texts together, and each alone; nothing is held afterwards."""
    worker, path = served
    expected = by_llama_cpp(path, TEXTS, pooling_of(path))
    together = embedded(worker, input=TEXTS)
    assert np.abs(together - expected).max() < TOLERANCE
    for vector, text in zip(expected, TEXTS, strict=True):
        assert np.abs(embedded(worker, input=text)[0] - vector).max() < TOLERANCE
    assert (
        np.abs(expected[0] - expected[1]).max() > 2 * TOLERANCE
    )  # Random weights tell texts apart by little.
    at_rest(worker)


def test_a_cancel_in_the_middle_of_inputs_changes_no_neighbour(served: tuple[RunningWorker, Path]) -> None:
    """Cancels at random moments beside a request that goes on; everything is free afterwards."""
    worker, _ = served
    chance = random.Random(1)
    inputs = [some_text(100 + n, 100) for n in range(6)]
    undisturbed = embedded(worker, input=inputs)
    for _ in range(3):
        with ThreadPoolExecutor(1) as client:
            beside = client.submit(embedded, worker, input=inputs, cache_prompt=False)
            answer = cancelled(worker, [some_text(chance.randrange(9999), 150) for _ in range(12)])
            assert answer.status_code in (200, 400)
            assert np.abs(beside.result() - undisturbed).max() < TOLERANCE
        at_rest(worker)
    assert "worker_audit_faults_total 0.0" in worker.client.get("/metrics").text


def test_inputs_go_on_after_their_engine_was_killed(served: tuple[RunningWorker, Path]) -> None:
    """In the next engine, with the same vectors."""
    worker, _ = served
    inputs = [some_text(200 + n, 150) for n in range(12)]
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(embedded, worker, input=inputs, cache_salt=fresh_id())
        wait_until(lambda: worker.health()["jobs_running"] > 0, what="a running job")
        os.kill(worker.health()["engine_pid"], signal.SIGKILL)
        vectors = asked.result()
    assert np.abs(vectors - embedded(worker, input=inputs, cache_salt=fresh_id())).max() < TOLERANCE
    at_rest(worker)


def test_a_model_serves_what_it_can(served: tuple[RunningWorker, Path]) -> None:
    """A decoder also generates, an encoder refuses to by a clear error."""
    worker, path = served
    answer = worker.client.post("/v1/completions", json={"prompt": "the", "max_tokens": 4})
    if path.name.partition("-F32")[0] in ENCODERS:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        assert "generates no text" in answer.json()["error"]["message"]
        stream = worker.execute(fresh_id("text"), "the")
        assert stream.finished().status == 400
    else:
        assert answer.status_code == 200, answer.text


def test_with_exact_a_batch_is_byte_for_byte_its_inputs_alone(tiny_models: TinyModels) -> None:
    """Also beside a stream that generates."""
    path = tiny_models.path("qwen3-embedding")
    with running_worker(
        "llama", wait=False, model=path, parallel=4, context_length=8192, threads=1, exact=True
    ) as worker:
        worker.ready(within_sec=120)
        alone = [embedded(worker, input=text, encoding_format="float")[0].tolist() for text in TEXTS]
        beside = worker.execute(fresh_id("beside"), "the", template="none", ignore_eos=True, max_tokens=200)
        assert embedded(worker, input=TEXTS).tolist() == alone
        worker.cancel(beside.job_id)
        receipt_of(worker, beside.job_id)
        at_rest(worker)


def test_a_model_without_pooling_embeds_nothing(tiny_models: TinyModels) -> None:
    """It says which option is missing; the job is over at once."""
    with running_worker(
        "llama", wait=False, model=tiny_models.path("llama"), parallel=2, context_length=1024, threads=1
    ) as worker:
        worker.ready(within_sec=120)
        job_id = fresh_id("embed")
        answer = worker.client.post(
            "/v1/embeddings", json={"input": ["a", "b"]}, headers={"X-Job-Id": job_id}
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "INVALID_REQUEST", "model")
        assert "--pooling" in error["message"]
        assert ended_state(worker, job_id)["state"] == "failed"
        at_rest(worker)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_an_encoder_that_computes_a_prompt_for_long_is_not_taken_for_stuck(tiny_models: TinyModels) -> None:
    """A prompt is one step, and the loop answers no ping during a step. Without a sign of progress an engine is killed
    after 10 s of computing, its successor as well, and the job fails."""
    more: dict[str, Any] = {"nomic-bert.context_length": 8192, "nomic-bert.block_count": 24}
    options: dict[str, Any] = {"embeddings": True, "context_length": 8192, "threads": 1, "parallel": 2}
    path = tiny_models.path("nomic-bert", **more)
    with running_worker("llama", wait=False, model=path, inference_timeout_sec=1500, **options) as worker:
        worker.ready(within_sec=300)
        tokens = [5 + 7 * n % 90 for n in range(8000)]
        job_id = fresh_id("long")
        answer = worker.client.post(
            "/v1/embeddings", json={"input": tokens}, headers={"X-Job-Id": job_id}, timeout=1500
        )
        assert answer.status_code == 200, answer.text
        record = worker.record(job_id)
        assert record["ended_ms"] - record["queue_ms"] > 10_000, "too short to be taken for a hang"
        assert worker.health()["engine_restarts"] == 0
