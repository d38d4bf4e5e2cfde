"""Computed prefixes over HTTP (G13, G14): counted in tokens, never in time."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import fresh_id
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

_beginnings = iter("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
ANNA, BERTA = "anna-0123456789abcdef", "berta-0123456789abcdef"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """A worker with two keys."""
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"{ANNA}\n{BERTA}\n")
    path.chmod(0o600)
    with running_worker(api_key_file=str(path)) as worker:
        yield worker


def prompt(length: int = 200) -> str:
    """A new prompt of this many bytes; the scripted model has one token per byte."""
    return next(_beginnings).ljust(length, "x")


def complete(worker: RunningWorker, text: str, key: str | None = None, **more: Any) -> dict[str, Any]:
    """The usage of a completion of two tokens."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"prompt": text, "max_tokens": 2, **more}
    answer = worker.client.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    usage: dict[str, Any] = answer.json()["usage"]
    return usage


def cached(usage: dict[str, Any]) -> int:
    """Prompt tokens that were not computed."""
    tokens: int = usage["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_a_prompt_that_continues_from_an_earlier_one_computes_what_is_new(worker: RunningWorker) -> None:
    """The same prompt reuses all but its last token, a longer one the common beginning."""
    text = prompt()
    first = complete(worker, text)
    assert (first["prompt_tokens"], cached(first)) == (200, 0)
    assert cached(complete(worker, text)) == 199
    assert cached(complete(worker, text + "more")) == 200
    assert cached(complete(worker, text[:100] + "other")) == 100


def test_choices_compute_their_prompt_once(worker: RunningWorker) -> None:
    """The worker's own count of computed tokens grows by one prompt, not by four."""
    before = computed_tokens(worker)
    usage = complete(worker, prompt(400), n=4)
    assert (usage["prompt_tokens"], usage["completion_tokens"], cached(usage)) == (400, 8, 0)
    assert 400 <= computed_tokens(worker) - before <= 400 + 4


def test_a_retry_after_a_cancel_continues_where_the_cancel_hit(worker: RunningWorker) -> None:
    """The receipt reports the warm cells, and the retry reuses them."""
    job_id, text = fresh_id(), '{"row_ms": 5}' + prompt(600)
    with worker.client.stream("POST", "/execute", json={"job_id": job_id, "prompt": text}) as stream:
        wait_until(lambda: record(worker, job_id)["prompt_tokens_processed"] > 0)
        answer = worker.cancel(job_id, Prefer="wait=10")
        assert b"CANCELLED" in stream.read()
    receipt = answer.json()["receipt"]
    assert receipt["kv_cells_after"] == 0
    assert receipt["kv_cells_warm"] == receipt["kv_cells_before"] > 0
    assert cached(complete(worker, text)) == receipt["kv_cells_warm"]
    assert worker.health()["kv_cells_cached"] > 0


def test_a_job_can_stay_out_of_the_cache(worker: RunningWorker) -> None:
    """It reuses nothing and leaves nothing."""
    text = prompt()
    complete(worker, text, cache_prompt=False)
    assert cached(complete(worker, text)) == 0
    assert cached(complete(worker, text, cache_prompt=False)) == 0


def test_a_salt_separates_prefixes(worker: RunningWorker) -> None:
    """Only jobs with the same salt share."""
    text = prompt()
    complete(worker, text, cache_salt="one")
    assert cached(complete(worker, text, cache_salt="two")) == 0
    assert cached(complete(worker, text)) == 0
    assert cached(complete(worker, text, cache_salt="one")) == 199


def test_no_key_starts_from_another_s_prefix(guarded: RunningWorker) -> None:
    """The key that sent a prompt reuses it each time, the other key never."""
    for _ in range(10):
        text = prompt()
        complete(guarded, text, ANNA)
        assert cached(complete(guarded, text, BERTA)) == 0
        assert cached(complete(guarded, text, ANNA)) == 199


def test_the_cache_can_be_off(tmp_path: Path) -> None:
    """`--prefix-cache off`."""
    with running_worker(prefix_cache="off") as worker:
        text = prompt()
        complete(worker, text)
        assert cached(complete(worker, text)) == 0
        assert worker.health()["kv_cells_cached"] == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("cache_salt", ""), ("cache_salt", 3), ("cache_salt", "x" * 257), ("cache_prompt", 1)],
)
def test_what_is_no_salt_is_refused_by_name(worker: RunningWorker, field: str, value: object) -> None:
    """On both APIs."""
    for path, body in (
        ("/execute", {"job_id": fresh_id(), "prompt": "x"}),
        ("/v1/completions", {"prompt": "x"}),
    ):
        answer = worker.client.post(path, json={**body, field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def record(worker: RunningWorker, job_id: str) -> dict[str, Any]:
    """A job's record; one that is not there yet has processed nothing."""
    answer = worker.client.get(f"/jobs/{job_id}")
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {"prompt_tokens_processed": 0}
    return found


def computed_tokens(worker: RunningWorker) -> float:
    """Prompt tokens that the worker has computed since it started."""
    lines = worker.client.get("/metrics").text.splitlines()
    name = 'worker_prompt_tokens_total{source="computed"}'
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def dies_and_returns(worker: RunningWorker) -> None:
    """Kill the engine and wait for the next one."""
    dead = worker.engine_pid
    worker.signal_engine(signal.SIGKILL)
    wait_until(lambda: worker.health()["engine_pid"] != dead, what="the engine's death")
    worker.ready()


def stored(worker: RunningWorker) -> int:
    """Bytes of the prefix store, by `/health`."""
    number: int = worker.health()["prefix_store_bytes"]
    return number


def test_prefixes_outlive_the_engine() -> None:
    """They are in the store, which the front owns."""
    with running_worker() as worker:
        text = prompt()
        complete(worker, text)
        wait_until(lambda: stored(worker) > 0, what="the prompt's computed prefix in the store")
        dies_and_returns(worker)
        assert cached(complete(worker, text)) == 199


def test_without_a_store_they_do_not() -> None:
    """With `--prefix-cache-mib 0` they are in KV cells only, which are lost with the engine."""
    with running_worker(prefix_cache_mib=0) as worker:
        text = prompt()
        complete(worker, text)
        assert cached(complete(worker, text)) == 199
        dies_and_returns(worker)
        assert cached(complete(worker, text)) == 0
        assert stored(worker) == 0
