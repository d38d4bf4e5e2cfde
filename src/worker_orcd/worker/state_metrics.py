"""Metrics of the worker's state, read on each scrape. Optionally also under vLLM's names."""

import asyncio
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker_orcd import __version__
from worker_orcd.worker.health import Status, status_of
from worker_orcd.worker.worker import Worker

BLOCK_CELLS = 16
"""vLLM's usual block. Routers compare prompts in blocks of this size; here, prefixes are reused by single cells."""


def publish(worker: Worker, *, vllm_names: bool = False) -> None:
    """Add the worker's state to its metrics.

    Args:
        worker: the worker.
        vllm_names: also use the names that routers for vLLM expect.
    """
    worker.metrics.info.info({"version": __version__, "worker_id": worker.worker_id})
    worker.metrics.registry.register(_State(worker))
    if vllm_names:
        worker.metrics.registry.register(_VllmNames(worker))


class _State(Collector):
    """The state in `GET /health`, for Prometheus."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """Read the state."""
        worker = self._worker
        engine, queue, supervisor = worker.engine, worker.dispatcher.queue, worker.supervisor
        now = status_of(worker)
        status = GaugeMetricFamily(
            "worker_status", "1 for the current status in `/health`, 0 for the others.", labels=["status"]
        )
        for one in Status:
            status.add_metric([one.value], one is now)
        yield status
        yield CounterMetricFamily(
            "worker_engine_restarts", "Engines started after the first.", supervisor.restarts
        )
        for name, help_text, value in (
            ("worker_jobs_running", "Jobs in the engine.", queue.running),
            ("worker_jobs_running_limit", "Slots in the engine.", engine.sequences if engine else 0),
            ("worker_jobs_queued", "Waiting jobs.", len(queue)),
            ("worker_jobs_queued_limit", "Maximum number of waiting jobs.", worker.policy.max_queue),
            ("worker_kv_cells", "Total number of KV cells.", engine.cells if engine else 0),
            (
                "worker_kv_cells_used",
                "KV cells of live jobs, by the engine's count.",
                worker.kv_usage.cells_used,
            ),
            ("worker_kv_cells_cached", "KV cells kept for later jobs.", worker.kv_usage.cells_cached),
            (
                "worker_prefix_store_bytes",
                "Host memory of computed prefixes, kept for later jobs.",
                worker.prefix_store_bytes,
            ),
            ("worker_event_loop_tasks", "Asyncio tasks of the front.", _tasks()),
            ("worker_start_time_seconds", "When the worker started, Unix time.", worker.started_unix),
        ):
            yield GaugeMetricFamily(name, help_text, value)


class _VllmNames(Collector):
    """The same state with the names and the label that routers for vLLM expect."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. None until the model's name is known."""
        worker = self._worker
        if worker.model is None:
            return
        engine, queue = worker.engine, worker.dispatcher.queue
        # 1 without an engine: with 0, a router would send all requests here.
        used = worker.kv_usage.cells_used / engine.cells if engine else 1.0
        for name, help_text, value in (
            ("vllm:num_requests_running", "As worker_jobs_running.", queue.running),
            ("vllm:num_requests_waiting", "As worker_jobs_queued.", len(queue)),
            ("vllm:kv_cache_usage_perc", "Fraction of KV cells in use, from 0 to 1.", used),
            ("vllm:gpu_cache_usage_perc", "The same under the name of older versions.", used),
        ):
            gauge = GaugeMetricFamily(name, help_text, labels=["model_name"])
            gauge.add_metric([worker.model], value)
            yield gauge
        prompt_tokens = worker.metrics.prompt_tokens_by_source()
        looked_up, found = sum(prompt_tokens.values()), prompt_tokens["cached"]
        for name, help_text, value in (
            ("vllm:prompt_tokens", "As worker_prompt_tokens_total.", looked_up),
            (
                "vllm:generation_tokens",
                "As worker_tokens_generated_total.",
                worker.metrics.tokens_generated(),
            ),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", looked_up),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", found),
            ("vllm:gpu_prefix_cache_queries", "The same under the name of older versions.", looked_up),
            ("vllm:gpu_prefix_cache_hits", "The same under the name of older versions.", found),
        ):
            counter = CounterMetricFamily(name, help_text, labels=["model_name"])
            counter.add_metric([worker.model], value)
            yield counter
        if engine:
            info = GaugeMetricFamily(
                "vllm:cache_config_info",
                "The KV cells, in blocks.",
                labels=["model_name", "block_size", "num_gpu_blocks"],
            )
            info.add_metric([worker.model, str(BLOCK_CELLS), str(engine.cells // BLOCK_CELLS)], 1)
            yield info


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # Called outside of the loop.
        return 0
