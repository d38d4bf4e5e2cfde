"""Observing a worker: jobs and receipts, health, metrics, docs, and log events (contract, 5, 6, 9)."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import fresh_id, queued, script
from worker_orcd import narration
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker

ENDLESS = script(token_ms=5)

RECORD_FIELDS = {
    "job_id",
    "incarnation",
    "state",
    "phase",
    "correlation_id",
    "accepted_at",
    "queue_ms",
    "first_token_ms",
    "ended_ms",
    "decode_time_ms",
    "prompt_tokens",
    "prompt_tokens_processed",
    "prompt_tokens_cached",
    "tokens_out",
    "requeues",
    "group",
    "priority",
    "supersedes",
    "superseded_by",
    "max_tokens",
    "seed",
    "timeout_ms",
    "stop_reason",
    "error",
    "receipt",
}
HEALTH_FIELDS = {
    "status",
    "worker_id",
    "model",
    "device",
    "resident",
    "quant_kind",
    "vram_bytes_used",
    "tokenizer_kind",
    "vocab_size",
    "context_length",
    "kv_cells_total",
    "kv_cells_used",
    "kv_cells_cached",
    "prefix_store_bytes",
    "jobs_running",
    "jobs_queued",
    "engine_pid",
    "engine_restarts",
    "exact",
    "uptime_seconds",
}


# Jobs.


def test_a_record_follows_its_job_from_queued_to_completed(narrow: RunningWorker) -> None:
    """Every field is always present; unknown values are null."""
    running = narrow.execute(fresh_id(), ENDLESS).tokens_seen(1)
    waiting = queued(narrow, narrow.execute(fresh_id(), "abc", max_tokens=2, seed=9))
    record = narrow.record(waiting.job_id)
    assert set(record) == RECORD_FIELDS
    assert (record["state"], record["phase"], record["queue_ms"]) == ("queued", "queued", None)
    assert (record["prompt_tokens"], record["max_tokens"], record["seed"]) == (3, 2, 9)
    record = narrow.record(running.job_id)
    assert (record["state"], record["phase"], record["ended_ms"]) == ("running", "decode", None)
    narrow.cancel(running.job_id)
    waiting.finished()
    record = narrow.record(waiting.job_id)
    assert (record["state"], record["stop_reason"], record["error"]) == ("completed", "length", None)
    assert (record["prompt_tokens_processed"], record["tokens_out"], record["receipt"]) == (3, 2, None)
    assert 0 < record["queue_ms"] <= record["first_token_ms"] <= record["ended_ms"]
    assert record["correlation_id"] == waiting.headers["x-correlation-id"]


def test_the_list_has_live_jobs_oldest_first_then_ended_ones_latest_first(narrow: RunningWorker) -> None:
    """All are equal to the records of `/jobs/{id}`."""
    ended = [narrow.execute(fresh_id("ended"), max_tokens=1).finished() for _ in range(2)]
    live = [narrow.execute(fresh_id("live"), ENDLESS).started()]
    live += [queued(narrow, narrow.execute(fresh_id("live"), ENDLESS)) for _ in range(2)]
    jobs = narrow.client.get("/jobs").json()["jobs"]
    wanted = [stream.job_id for stream in [*live, *reversed(ended)]]
    assert [job["job_id"] for job in jobs][:5] == wanted
    assert jobs[3] == narrow.record(wanted[3])
    for stream in live:
        narrow.cancel(stream.job_id)
        stream.finished()


def test_a_receipt_says_what_the_stop_did_and_when(worker: RunningWorker) -> None:
    """accepted ≤ stopped ≤ freed ≤ terminal, cells before and after, what was processed, and who asked."""
    prompt = script(120, token_ms=5)
    stream = worker.execute(fresh_id(), prompt).tokens_seen(4)
    worker.cancel(stream.job_id, **{"X-Correlation-Id": f"ends-{stream.job_id}"})
    stream.finished()
    record = worker.record(stream.job_id)
    receipt = record["receipt"]
    assert set(receipt) == {
        "reason",
        "phase",
        "accepted_ms",
        "stopped_ms",
        "freed_ms",
        "terminal_ms",
        "prompt_tokens",
        "prompt_tokens_cached",
        "tokens_out",
        "kv_cells_before",
        "kv_cells_after",
        "kv_cells_warm",
        "cancel_correlation_id",
    }
    assert (
        0 == receipt["accepted_ms"] <= receipt["stopped_ms"] <= receipt["freed_ms"] <= receipt["terminal_ms"]
    )
    assert receipt["stopped_ms"] <= 500  # One trial; distributions are elsewhere.
    assert (receipt["reason"], receipt["phase"]) == ("client", "decode")
    assert (receipt["prompt_tokens"], receipt["tokens_out"]) == (len(prompt), len(stream.tokens))
    # The last token drawn is not in a cell yet. Steps that ran until the job had stopped drew tokens that nobody gets.
    known = len(prompt) + len(stream.tokens)
    steps_until_stopped = 1 + receipt["stopped_ms"] / 5
    assert known - 1 <= receipt["kv_cells_before"] <= known + steps_until_stopped
    assert receipt["kv_cells_after"] == 0
    assert receipt["cancel_correlation_id"] == f"ends-{stream.job_id}"
    assert record["error"] == stream.events[-1].data
    complete = worker.narrated("cancel_complete", job_id=stream.job_id)
    for reported, written in (
        ("stopped_ms", "stopped_ms"),
        ("freed_ms", "freed_ms"),
        ("terminal_ms", "terminal_ms"),
    ):
        assert complete[reported] == pytest.approx(receipt[written], abs=0.1)
    assert (complete["cells_before"], complete["cells_after"]) == (receipt["kv_cells_before"], 0)


@pytest.mark.parametrize("job_id", ["nobody", "x" * 256, "%E2%82%AC", "a%20b"])
def test_a_job_that_nobody_knows_is_not_found(worker: RunningWorker, job_id: str) -> None:
    """404 JOB_NOT_FOUND in the usual shape, never 422."""
    answer = worker.client.get(f"/jobs/{job_id}")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["retriable"]) == ("JOB_NOT_FOUND", False)


# Health.


def test_health_tells_everything(worker: RunningWorker) -> None:
    """The contract's fields with plausible values; `reason` is only there when the worker is not healthy."""
    stream = worker.execute(fresh_id(), script(300, token_ms=5)).tokens_seen(1)
    health = worker.health()
    assert set(health) - {"reason"} == HEALTH_FIELDS
    assert health.get("reason") is None
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", health["worker_id"])
    assert (health["status"], health["model"], health["device"]) == ("healthy", "scripted", "cpu")
    assert (health["resident"], health["exact"], health["vram_bytes_used"]) == (True, False, 0)
    assert (health["jobs_running"], health["jobs_queued"]) == (1, 0)
    assert 300 <= health["kv_cells_used"] < 2400
    assert health["kv_cells_total"] == 16384
    assert 0 <= health["kv_cells_cached"] <= 16384 // 4
    assert health["context_length"] == 8192
    assert health["uptime_seconds"] > 0
    worker.cancel(stream.job_id)
    stream.finished()


def test_health_answers_quickly_also_while_the_engine_is_in_a_long_step(worker: RunningWorker) -> None:
    """Health never queries the engine: the median of fifty requests is under 10 ms."""
    stream = worker.execute(fresh_id(), script(token_ms=300)).tokens_seen(1)
    took_ms = []
    for _ in range(50):
        began = time.monotonic()
        assert worker.client.get("/health").status_code == 200
        took_ms.append((time.monotonic() - began) * 1000)
    assert sorted(took_ms)[25] < 10, took_ms
    worker.cancel(stream.job_id)
    stream.finished()


def test_liveness_and_readiness_are_separate(worker: RunningWorker) -> None:
    """Both are 200 while the worker is healthy."""
    assert worker.client.get("/livez").json() == {"status": "alive"}
    ready = worker.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "healthy"})


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
def test_who_wants_no_body_asks_with_head(worker: RunningWorker, path: str) -> None:
    """Some load balancers do: they get the same status and headers."""
    asked, whole = worker.client.head(path), worker.client.get(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-type"] == whole.headers["content-type"]


# Metrics.


def _metrics(worker: RunningWorker) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = worker.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(worker: RunningWorker) -> None:
    """One job that ends, one cancelled in decode, one refused: the counters move by exactly that."""
    before = _metrics(worker)
    worker.execute(fresh_id(), max_tokens=3, stop=[]).finished()
    stream = worker.execute(fresh_id(), ENDLESS).tokens_seen(2)
    worker.cancel(stream.job_id)
    stream.finished()
    worker.client.post("/execute", content=b"{}")
    after = _metrics(worker)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0.0)

    assert grown("worker_requests_total", outcome="completed", reason="length", status="200") == 1
    assert grown("worker_requests_total", outcome="cancelled", reason="client", status="499") == 1
    assert grown("worker_refusals_total", code="INVALID_REQUEST") == 1
    assert grown("worker_tokens_generated_total") == 3 + len(stream.tokens)
    assert grown("worker_inference_duration_seconds_count") == 2
    for name in ("queue_duration", "prefill_duration", "time_to_first_token"):
        assert grown(f"worker_{name}_seconds_count") == 2, name
        assert 0 <= grown(f"worker_{name}_seconds_sum") < 5, name
    assert grown("worker_inter_token_latency_seconds_count") == 1 + len(stream.tokens)
    for stage in ("stopped", "freed", "terminal"):
        labels = {"stage": stage, "phase": "decode"}
        assert grown("worker_cancel_latency_seconds_count", **labels) == 1
        assert 0 <= grown("worker_cancel_latency_seconds_sum", **labels) < 1


def test_a_failed_step_is_not_counted_as_done(worker: RunningWorker) -> None:
    """It has an outcome of its own."""
    failed = ("worker_engine_steps_total", (("outcome", "failed"),))
    before = _metrics(worker)[failed]
    worker.execute(fresh_id(), script(fail_at=1)).finished()
    assert _metrics(worker)[failed] == before + 1


def test_metrics_have_the_gauges_of_health(worker: RunningWorker) -> None:
    """Running, queued and KV use; every name has the prefix."""
    stream = worker.execute(fresh_id(), ENDLESS).tokens_seen(1)
    metrics = _metrics(worker)
    assert metrics["worker_jobs_running", ()] == 1
    assert metrics["worker_jobs_queued", ()] == 0
    assert metrics["worker_kv_cells_used", ()] > 0
    assert metrics["worker_kv_cells", ()] == 16384
    assert (metrics["worker_jobs_running_limit", ()], metrics["worker_jobs_queued_limit", ()]) == (16, 512)
    assert {
        dict(labels)["status"]: on for (name, labels), on in metrics.items() if name == "worker_status"
    } == {
        "loading": 0,
        "healthy": 1,
        "draining": 0,
        "unhealthy": 0,
    }
    assert time.time() - 3600 < metrics["worker_start_time_seconds", ()] < time.time()
    assert all(name.startswith("worker_") for name, _ in metrics)
    worker.cancel(stream.job_id)
    stream.finished()


# Docs.


def test_the_docs_work_offline(worker: RunningWorker) -> None:
    """The page names no other host, and everything it loads is served here."""
    page = worker.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:https?:)?//[\w.-]+\.\w+/""", page.text)
    assets = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page.text)
    paths = [one or other for one, other in assets]
    assert len(paths) >= 4
    for path in paths:
        assert path.startswith("/")
        assert worker.client.get(path).status_code == 200, path


def test_the_api_is_described(worker: RunningWorker) -> None:
    """OpenAPI 3 with every resource, real references, and no 422, which is never answered."""
    described = worker.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert {(method, path) for path, methods in described["paths"].items() for method in methods} >= {
        ("post", "/execute"),
        ("post", "/cancel"),
        ("get", "/jobs"),
        ("get", "/jobs/{job_id}/events"),
        ("get", "/jobs/{job_id}"),
        ("get", "/health"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/metrics"),
        ("post", "/shutdown"),
        ("get", "/narration"),
        ("post", "/tokenize"),
        ("post", "/detokenize"),
        ("post", "/apply-template"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model}"),
        ("post", "/v1/completions"),
        ("post", "/v1/chat/completions"),
        ("post", "/v1/responses"),
        ("get", "/v1/responses/{response_id}"),
        ("post", "/v1/responses/{response_id}/cancel"),
    }
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(described)):
        node = described
        for part in reference.split("/"):
            node = node[part]
    for methods in described["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["responses"]
            assert "422" not in operation["responses"]
            assert all(answer["description"] for answer in operation["responses"].values())
    job_id = described["paths"]["/execute"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert job_id["properties"]["job_id"]["maxLength"] == 256


# Narration, over the whole life of one worker.


@dataclass(frozen=True)
class Life:
    """The log events of one worker from its start to its end."""

    log: str
    events: list[dict[str, Any]]
    imported_by_first_job: list[str]

    def of(self, action: str, **fields: Any) -> list[dict[str, Any]]:
        """Its events of this action with these fields."""
        return [e for e in self.events if {"action": action, **fields}.items() <= e.items()]


PROMPT_CANARY = "canaryprompt"
OUTPUT_CANARY = "canaryoutput"


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    """A worker with jobs that end, fail, time out, are cancelled or refused, or lose their reader."""
    with running_worker(env={"PYTHONPROFILEIMPORTTIME": "1"}, drain_sec=0.2) as worker:
        born = len(worker.log.read_text())
        first = worker.execute("first", ENDLESS).tokens_seen(2)
        worker.cancel("first")
        first.finished()
        imported = re.findall(r"import time:.*", worker.log.read_text()[born:])
        _live(worker)
        worker.stop()
        yield Life(worker.log.read_text(), worker.narration(), imported)


def _live(worker: RunningWorker) -> None:
    prompt = script(text=OUTPUT_CANARY) + PROMPT_CANARY
    own_id = {"X-Correlation-Id": "correlation-of-ends"}
    Stream(worker, {"job_id": "ends", "prompt": prompt}, own_id).finished()
    worker.execute("fails", script(fail_at=1) + PROMPT_CANARY).finished()
    worker.execute("late", script(token_ms=5) + PROMPT_CANARY, timeout_ms=60).finished()
    worker.execute("left", script(token_ms=5) + PROMPT_CANARY).tokens_seen(1).leave()
    worker.execute("too-long", PROMPT_CANARY * 800).finished()
    for body in (
        f'{{"job_id": "x", "prompt": "{PROMPT_CANARY}',
        f'{{"job_id": "x", "prompt": ["{PROMPT_CANARY}"]}}',
        f'{{"job_id": "x", "prompt": "{PROMPT_CANARY}", "temperature": 9}}',
        f'"{PROMPT_CANARY}"',
    ):
        assert worker.client.post("/execute", content=body.encode()).status_code == 400
    cancelled = worker.execute("cancelled", script(token_ms=5) + PROMPT_CANARY).tokens_seen(1)
    worker.cancel("cancelled")
    cancelled.finished()
    worker.narrated("cancel_complete", job_id="left")


def test_the_first_job_waits_for_no_imports(life: Life) -> None:
    """All imports are done before the worker listens, so the first cancel is as quick as any."""
    assert life.imported_by_first_job == []


def test_only_actions_of_the_catalogue_are_narrated(life: Life) -> None:
    """Every event has one of them, the envelope, and a short sentence."""
    catalogue = {action.name for action in narration.ACTIONS}
    assert {event["action"] for event in life.events} <= catalogue
    for event in life.events:
        assert event["actor"] == "worker-orcd"
        assert event["level"] in ("INFO", "WARN", "ERROR")
        assert event["process"] in ("front", "engine")
        assert event["target"]
        assert 0 < len(event["human"]) <= 100
    assert len({event["worker_id"] for event in life.events}) == 1
    lines = [line for line in life.log.splitlines() if not line.startswith("import time:")]
    assert all(line.startswith("{") for line in lines), "something else wrote to standard error"


def test_the_life_of_a_worker_is_reported_in_order(life: Life) -> None:
    """`startup`, the progress of loading, `ready`, and at the end `drain` and `shutdown`."""
    actions = [event["action"] for event in life.events]
    assert actions[:9] == [
        "startup",
        "model_load_start",
        *["model_load_progress"] * 5,
        "model_load_complete",
        "ready",
    ]
    assert [event["percent"] for event in life.of("model_load_progress")] == [0, 25, 50, 75, 100]
    assert actions[-2:] == ["drain", "shutdown"]


def test_neither_prompt_nor_output_is_ever_narrated(life: Life) -> None:
    """Whatever happens to a job, events have only lengths and a digest."""
    assert PROMPT_CANARY not in life.log
    assert OUTPUT_CANARY not in life.log
    (start,) = life.of("execute_start", job_id="ends")
    assert start["prompt_chars"] == len(script(text=OUTPUT_CANARY) + PROMPT_CANARY)
    assert re.fullmatch(r"[0-9a-f]{64}", start["prompt_sha256"])


def test_a_jobs_correlation_id_stands_in_the_events_of_both_processes(life: Life) -> None:
    """The engine logs its start and the front its end, both with the client's id."""
    own = {"job_id": "ends", "correlation_id": "correlation-of-ends"}
    assert len(life.of("execute_start", process="engine", **own)) == 1
    assert len(life.of("execute_end", process="front", **own)) == 1


def test_each_way_to_end_is_narrated_once(life: Life) -> None:
    """Each has its action: an end, an error, a timeout, a disconnect, a cancel."""
    assert len(life.of("execute_end", job_id="ends", tokens_out=len(OUTPUT_CANARY), stop_reason="stop")) == 1
    assert life.of("error", job_id="fails", code="INTERNAL")
    assert len(life.of("timeout", job_id="late", timeout_ms=60)) == 1
    assert len(life.of("cancel_complete", job_id="late", reason="timeout")) == 1
    assert len(life.of("disconnect", job_id="left")) == 1
    assert len(life.of("cancel_complete", job_id="left", reason="disconnect")) == 1
    (complete,) = life.of("cancel_complete", job_id="cancelled")
    assert complete["human"] == "Job cancelled cancelled successfully"
    assert (complete["level"], complete["reason"]) == ("INFO", "client")
    refusals = life.of("error", level="WARN")
    assert len(refusals) == 5
    assert {event["code"] for event in refusals} == {"INVALID_REQUEST"}


def test_a_job_refused_for_its_prompt_is_reported_and_counted_once(worker: RunningWorker) -> None:
    """As the client's fault, not as a failure of the worker."""
    before = _metrics(worker)
    body = {"job_id": fresh_id(), "prompt": "x" * 8000, "max_tokens": 2000}
    assert worker.client.post("/execute", json=body).status_code == 400
    changed = {key for key, value in _metrics(worker).items() if value != before[key]}
    failed = {"outcome": "failed", "reason": "INVALID_REQUEST", "status": "400"}
    assert ("worker_requests_total", tuple(failed.items())) in changed
    assert not any(name == "worker_refusals_total" for name, _ in changed)
    reported = worker.narrated("error", job_id=body["job_id"])
    assert reported["level"] == "WARN"
    mine = [
        event for event in worker.narration() if event.get("correlation_id") == reported["correlation_id"]
    ]
    assert mine == [reported]


def test_many_readers_of_health_and_jobs_do_not_disturb_a_stream(worker: RunningWorker) -> None:
    """Beside hundreds of requests the job loses no token."""
    stream = worker.execute(fresh_id(), script(token_ms=2), max_tokens=100, seed=3).tokens_seen(1)
    done = threading.Event()

    def look(path: str) -> int:
        looks = 0
        while not done.is_set():
            assert worker.client.get(path).status_code == 200
            looks += 1
        return looks

    with ThreadPoolExecutor(4) as pool:
        looks = [
            pool.submit(look, path) for path in ("/health", "/jobs", "/metrics", f"/jobs/{stream.job_id}")
        ]
        stream.finished()
        done.set()
        assert all(seen.result() > 0 for seen in looks)
    stream.assert_whole()
    assert len(stream.tokens) == 100


def test_a_trace_continues_as_correlation_id(worker: RunningWorker) -> None:
    """A request with a `traceparent` and without an id of its own gets the trace's id; a malformed one is ignored."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    good = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert worker.client.get("/livez", headers=good).headers["x-correlation-id"] == trace
    own = {**good, "X-Correlation-Id": "mine"}
    assert worker.client.get("/livez", headers=own).headers["x-correlation-id"] == "mine"
    parent = "00f067aa0ba902b7"
    later = f"cc-{trace}-{parent}-01-what-the-future-will-bring"
    assert worker.client.get("/livez", headers={"traceparent": later}).headers["x-correlation-id"] == trace
    broken = (f"00-{'0' * 32}-{parent}-01", f"ff-{trace}-{parent}-01", f"00-{trace}-{'0' * 16}-01")
    for malformed in (*broken, f"{good['traceparent']}-x", "00-xyz-1-01", ""):
        answer = worker.client.get("/livez", headers={"traceparent": malformed})
        assert answer.headers["x-correlation-id"] not in (trace, "0" * 32)
