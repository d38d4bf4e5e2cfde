"""Prometheus metrics: base units, prefix `worker_`, labels from closed sets.

Every series exists from the start, because `increase()` misses the event with which a series begins.
"""

from collections.abc import Iterator
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from worker_orcd.jobs.errors import KINDS, ErrorCode
from worker_orcd.jobs.events import End, StopReason as EndReason, Terminal
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.receipt import Receipt
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.jobs.stop_target import TargetState
from worker_orcd.protocol.messages import AuditFault, Step, StepOutcome
from worker_orcd.worker.observer import Observer, StopRequested

# Fine enough for a GPU that decodes a token in a millisecond, wide enough for a CPU that takes seconds, and with a
# bound at each guaranteed time: 20 ms, 100 ms and 5 s (G1 and G5).
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_JOB = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_STAGES = ("stopped", "freed", "terminal")
_STEP_OUTCOMES: tuple[str, ...] = get_args(StepOutcome)
_FAILURES = (
    ErrorCode.INVALID_REQUEST,
    ErrorCode.ENGINE_LOST,
    ErrorCode.VRAM_OOM,
    ErrorCode.CUDA_ERROR,
    ErrorCode.INTERNAL,
)
"""Error codes of jobs that fail after acceptance."""

# The `_created` series would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # The library has no type for it.


class Metrics(Observer):
    """One worker's own registry; `render` is the body of `GET /metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        into = self.registry
        self.requests = Counter(
            "worker_requests",
            "Ended jobs, by outcome, reason and the corresponding HTTP status.",
            ["outcome", "reason", "status"],
            registry=into,
        )
        self.refusals = Counter(
            "worker_refusals", "Requests that were refused, by error code.", ["code"], registry=into
        )
        self.cancels = Counter(
            "worker_cancel_requests",
            "Cancel requests, by the state of the job.",
            ["known"],
            registry=into,
        )
        self.tokens = Counter(
            "worker_tokens_generated", "Tokens generated and written to streams.", registry=into
        )
        self.prompt_tokens = Counter(
            "worker_prompt_tokens",
            "Prompt tokens, by source: computed or cached.",
            ["source"],
            registry=into,
        )
        for source in ("computed", "cached"):
            self.prompt_tokens.labels(source)
        self.steps = Counter(
            "worker_engine_steps", "Steps of the engine, by how they ended.", ["outcome"], registry=into
        )
        self.preemptions = Counter(
            "worker_preemptions", "Jobs preempted because others need their KV cells or slots.", registry=into
        )
        self.audit_faults = Counter(
            "worker_audit_faults", "Differences found by audits of KV cells.", registry=into
        )
        self.step_seconds = Histogram(
            "worker_engine_step_duration_seconds",
            "Duration of a step of the engine.",
            buckets=_STEP,
            registry=into,
        )
        self.queue = Histogram(
            "worker_queue_duration_seconds",
            "From acceptance to the start in the engine, or to the end of a job that was never started.",
            buckets=_JOB,
            registry=into,
        )
        self.prefill = Histogram(
            "worker_prefill_duration_seconds",
            "From a job's first start in the engine to its first token.",
            buckets=_JOB,
            registry=into,
        )
        self.first_token = Histogram(
            "worker_time_to_first_token_seconds",
            "From acceptance to the first token.",
            buckets=_JOB,
            registry=into,
        )
        self.inter_token = Histogram(
            "worker_inter_token_latency_seconds",
            "Between two tokens of a job.",
            buckets=_STEP,
            registry=into,
        )
        self.inference = Histogram(
            "worker_inference_duration_seconds",
            "From acceptance to the terminal event.",
            buckets=_JOB,
            registry=into,
        )
        self.cancel_latency = Histogram(
            "worker_cancel_latency_seconds",
            "From a cancel's acceptance to its stages, by the job's phase at that time.",
            ["stage", "phase"],
            buckets=_STEP,
            registry=into,
        )
        self.info = Info("worker_build", "Version and identity of this worker.", registry=into)
        self._begin()

    def _begin(self) -> None:
        """Create every series."""
        for labels in _all_outcomes():
            self.requests.labels(*labels)
        for code in ErrorCode:
            self.refusals.labels(code.value)
        for known in TargetState:
            self.cancels.labels(known.value)
        for outcome in _STEP_OUTCOMES:
            self.steps.labels(outcome)
        for stage in _STAGES:
            for phase in Phase:
                self.cancel_latency.labels(stage, phase.value)

    def started(self, job: Job) -> None:
        """Observe the wait of a job that starts for the first time."""
        if job.started_at is not None and not job.requeues:
            self.queue.observe(job.started_at - job.accepted.mono)

    def token(self, job: Job, previous_at: float | None, *, generated: bool) -> None:
        """Count a token, and observe its latency."""
        if generated:
            self.tokens.inc()
        if job.last_token_at is None or job.started_at is None:
            return
        if previous_at is None:
            self.prefill.observe(job.last_token_at - job.started_at)
            self.first_token.observe(job.last_token_at - job.accepted.mono)
        else:
            self.inter_token.observe(job.last_token_at - previous_at)

    def preempted(self, job: Job) -> None:
        """Count it."""
        self.preemptions.inc()

    def stop_requested(self, request: StopRequested) -> None:
        """Count a client's cancel."""
        if request.stop.reason is StopReason.CLIENT:
            self.cancels.labels(request.target.state.value).inc()

    def stepped(self, step: Step) -> None:
        """Count a step, its computed prompt tokens, and the cached ones of jobs that began with it."""
        self.steps.labels(step.outcome).inc()
        self.step_seconds.observe(step.duration_ms / 1000)
        if step.progress:
            self.prompt_tokens.labels("computed").inc(step.prompt_computed)
            self.prompt_tokens.labels("cached").inc(sum(progress.cached for progress in step.progress))

    def audit_fault(self, fault: AuditFault, job: Job | None) -> None:
        """Count it."""
        self.audit_faults.inc()

    def prompt_tokens_by_source(self) -> dict[str, float]:
        """Prompt tokens so far, `computed` and `cached`."""
        (counted,) = self.prompt_tokens.collect()
        return {sample.labels["source"]: sample.value for sample in counted.samples}

    def tokens_generated(self) -> float:
        """Tokens generated so far."""
        (counted,) = self.tokens.collect()
        return counted.samples[0].value

    def ended(self, job: Job) -> None:
        """Count a job by its terminal event."""
        terminal = job.terminal
        if terminal is None:
            return
        self.requests.labels(*_labels(terminal, job.receipt)).inc()
        if job.ended_at is not None:
            took = job.ended_at - job.accepted.mono
            self.inference.observe(took)
            if job.started_at is None:
                self.queue.observe(took)
        if job.receipt is not None and job.receipt.reason is not StopReason.TIMEOUT:
            self._cancelled(job.receipt)

    def _cancelled(self, receipt: Receipt) -> None:
        times = (receipt.stopped_ms, receipt.freed_ms, receipt.terminal_ms)
        for stage, took_ms in zip(_STAGES, times, strict=True):
            if took_ms is not None:
                self.cancel_latency.labels(stage, receipt.phase).observe(took_ms / 1000)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def outcome_of(terminal: Terminal, receipt: Receipt | None) -> tuple[str, str]:
    """The outcome and reason of a job's end, both from closed sets."""
    if isinstance(terminal, End):
        return "completed", terminal.stop_reason
    if terminal.code is ErrorCode.CANCELLED and receipt is not None:
        return "cancelled", receipt.reason.value
    outcome = "timed_out" if terminal.code is ErrorCode.INFERENCE_TIMEOUT else "failed"
    return outcome, terminal.code.value


def _labels(terminal: Terminal, receipt: Receipt | None) -> tuple[str, str, str]:
    """Outcome, reason and status."""
    status = "200" if isinstance(terminal, End) else str(KINDS[terminal.code].http_status)
    return *outcome_of(terminal, receipt), status


def _all_outcomes() -> Iterator[tuple[str, str, str]]:
    """All label values that `_labels` can return."""
    for reason in get_args(EndReason):
        yield "completed", reason, "200"
    for stop in StopReason:
        if stop is not StopReason.TIMEOUT:
            yield "cancelled", stop.value, str(KINDS[ErrorCode.CANCELLED].http_status)
    yield "timed_out", ErrorCode.INFERENCE_TIMEOUT.value, str(KINDS[ErrorCode.INFERENCE_TIMEOUT].http_status)
    for code in _FAILURES:
        yield "failed", code.value, str(KINDS[code].http_status)
