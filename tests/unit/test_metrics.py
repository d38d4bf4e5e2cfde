"""Metrics: every series exists from the start, buckets have edges at the promises, and names follow Prometheus'
rules."""

import subprocess
from itertools import count

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import at, freed_at, queued_job, running_job, stop_request
from tools.docs.examples import idle_worker
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.protocol.messages import Progress, Ready, Step
from worker_orcd.worker.metrics import Metrics
from worker_orcd.worker.state_metrics import publish
from worker_orcd.worker.wire import KvUsage
from worker_orcd.worker.worker import Worker

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
_runs = count(1)


def samples(metrics: Metrics) -> Samples:
    """Every series with its value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of one series."""
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def jobs_of_every_ending() -> list[Job]:
    """Jobs that were completed, cancelled, timed out or failed, some while they waited and some while they ran."""
    jobs = []
    for reason in ("stop", "length", "stop_sequence"):
        jobs.append(running_job(run=next(_runs)))
        jobs[-1].finished(at(3), reason, freed_at(3))
    for stop in StopReason:
        jobs += [queued_job(run=next(_runs)), running_job(run=next(_runs))]
        jobs[-2].request_stop(stop_request(stop))
        jobs[-1].request_stop(stop_request(stop))
        jobs[-1].stopped(at(2.05), freed_at(2.05))
    for code in ("INVALID_REQUEST", "ENGINE_LOST", "VRAM_OOM", "CUDA_ERROR", "INTERNAL"):
        jobs.append(running_job(run=next(_runs)))
        jobs[-1].failed(at(3), JobError(ErrorCode(code), "it failed"), freed_at(3))
    return jobs


def test_every_series_is_there_from_the_start() -> None:
    """No series first appears with an event, since `increase()` would not count that event."""
    metrics = Metrics()
    before = samples(metrics)
    for job in jobs_of_every_ending():
        metrics.ended(job)
    assert set(samples(metrics)) == set(before)
    assert all(number == 0 for (name, _), number in before.items() if name != "worker_build_info")
    assert value(metrics, "worker_inference_duration_seconds_count") == len(jobs_of_every_ending())


def test_cancels_are_measured_by_stage_and_phase_and_deadlines_are_not() -> None:
    """A job that ran and was stopped after 50 ms counts in each stage."""
    metrics = Metrics()
    for reason in (StopReason.CLIENT, StopReason.TIMEOUT):
        job = running_job(run=next(_runs))
        job.request_stop(stop_request(reason))
        job.stopped(at(2.06), freed_at(2.05))
        metrics.ended(job)
    for stage, took in (("stopped", 0.05), ("freed", 0.05), ("terminal", 0.06)):
        labels = {"stage": stage, "phase": "prefill"}
        assert value(metrics, "worker_cancel_latency_seconds_count", **labels) == 1
        assert value(metrics, "worker_cancel_latency_seconds_sum", **labels) == pytest.approx(took)


@pytest.mark.parametrize("promise", ["0.02", "0.1", "5.0"])
def test_buckets_of_cancels_have_an_edge_at_each_promise(promise: str) -> None:
    """So stops beyond a promise can be counted exactly."""
    labels = {"stage": "stopped", "phase": "decode", "le": promise}
    assert value(Metrics(), "worker_cancel_latency_seconds_bucket", **labels) == 0


def test_waiting_and_prefill_add_up_to_the_first_token() -> None:
    """The job waits for a second and is in prefill for half a second."""
    metrics = Metrics()
    job = running_job()
    metrics.started(job)
    job.token(at(1.5), 1, "a")
    metrics.token(job, None, generated=True)
    sums = {
        name: value(metrics, f"worker_{name}_seconds_sum")
        for name in ("queue_duration", "prefill_duration", "time_to_first_token")
    }
    assert sums == {"queue_duration": 1.0, "prefill_duration": 0.5, "time_to_first_token": 1.5}


def test_a_job_that_never_left_the_queue_counts_with_all_its_waiting() -> None:
    """Otherwise a queue in which every job gives up would look short."""
    metrics = Metrics()
    job = queued_job()
    job.request_stop(stop_request(seconds=40.0))
    metrics.ended(job)
    assert value(metrics, "worker_queue_duration_seconds_sum") == 40.0
    assert value(metrics, "worker_prefill_duration_seconds_count") == 0


# Read at the moment of a scrape.

READY = Ready("a-model", "cpu", True, 0, "F16", "bytes", 50_000, 1000, 500, 4, False, 1.0)


def with_vllm_names() -> Worker:
    """A worker without an engine that shows vLLM's names."""
    worker = idle_worker()
    publish(worker, vllm_names=True)
    return worker


def vllm(worker: Worker) -> dict[str, float]:
    """The values under vLLM's names."""
    return {
        name.removeprefix("vllm:"): number
        for (name, labels), number in samples(worker.metrics).items()
        if name.startswith("vllm:") and labels == (("model_name", "a-model"),)
    }


def test_routers_for_vllm_find_every_series_that_they_read() -> None:
    """Names and labels as in the sources of llm-d's endpoint picker (`defaultEngineConfigs`, and `block_size` and
    `num_gpu_blocks` of `populateCacheInfoMetrics`) and of production-stack's router (`EngineStats.from_vllm_scrape`)
    and operator. Left out on purpose: adapters, and the rate of hits, which vLLM no longer has."""
    llm_d = {"vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"}
    production_stack = {
        *("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:gpu_cache_usage_perc"),
        *("vllm:gpu_prefix_cache_hits_total", "vllm:gpu_prefix_cache_queries_total"),
        *("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    }
    worker = with_vllm_names()
    worker.model, worker.engine = "a-model", READY
    shown = samples(worker.metrics)
    assert llm_d | production_stack <= {
        name for name, labels in shown if dict(labels) == {"model_name": "a-model"}
    }
    blocks = {"model_name": "a-model", "block_size": "16", "num_gpu_blocks": "62"}
    assert shown["vllm:cache_config_info", tuple(sorted(blocks.items()))] == 1


def test_vllms_names_are_shown_only_when_wanted() -> None:
    """By default every name has our prefix."""
    worker = idle_worker()
    worker.model, worker.engine = "a-model", READY
    publish(worker)
    assert all(name.startswith("worker_") for name, _ in samples(worker.metrics))


def test_vllms_names_say_what_ours_say() -> None:
    """With the model as label, and the cells as a share of all."""
    worker = with_vllm_names()
    assert b"vllm" not in worker.metrics.render(), "no name, no label"
    worker.model, worker.engine, worker.kv_usage = "a-model", READY, KvUsage(cells_used=250)
    assert vllm(worker) == {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0.25,
        "gpu_cache_usage_perc": 0.25,
        "prompt_tokens_total": 0,
        "generation_tokens_total": 0,
        "prefix_cache_queries_total": 0,
        "prefix_cache_hits_total": 0,
        "gpu_prefix_cache_queries_total": 0,
        "gpu_prefix_cache_hits_total": 0,
    }


def test_prompt_tokens_are_counted_by_where_they_came_from() -> None:
    """Under vLLM's names, tokens that were looked up and those found."""
    worker = with_vllm_names()
    worker.model, worker.engine = "a-model", READY
    for computed, cached in ((30, 0), (5, 70)):
        progress = (Progress(1, computed + cached, cached),)
        worker.metrics.stepped(Step(1.0, (), progress, (), 100, 1, 1.0, prompt_computed=computed))
    assert value(worker.metrics, "worker_prompt_tokens_total", source="computed") == 35
    assert value(worker.metrics, "worker_prompt_tokens_total", source="cached") == 70
    assert vllm(worker)["prefix_cache_queries_total"] == 105
    assert vllm(worker)["prefix_cache_hits_total"] == 70


def test_without_an_engine_a_router_sees_that_all_is_full() -> None:
    """Routers send most to the least loaded worker, so a worker without an engine must not look idle."""
    worker = with_vllm_names()
    worker.model = "a-model"
    assert vllm(worker)["kv_cache_usage_perc"] == 1.0


def test_restarts_are_a_counter_and_status_is_one_of_four() -> None:
    """As the supervisor counts, and as `/health` says."""
    worker = with_vllm_names()
    worker.supervisor.restarts = 3
    assert value(worker.metrics, "worker_engine_restarts_total") == 3
    statuses = {
        dict(labels)["status"]: on
        for (name, labels), on in samples(worker.metrics).items()
        if name == "worker_status"
    }
    assert statuses == {"loading": 1, "healthy": 0, "draining": 0, "unhealthy": 0}


@pytest.mark.needs("promtool")
def test_names_and_types_are_as_prometheus_wants_them() -> None:
    """`promtool check metrics` has nothing to say."""
    worker = idle_worker()
    publish(worker)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        check=False,
        input=worker.metrics.render(),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
