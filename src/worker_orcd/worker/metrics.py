"""What is measured, in Prometheus' terms: base units, prefix `worker_`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from worker_orcd.jobs.errors import KINDS, ErrorCode
from worker_orcd.jobs.events import End, Terminal
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.receipt import Receipt
from worker_orcd.jobs.stops import StopReason

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_DURATION = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """One worker's own registry; `render` is the body of `GET /metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        into = self.registry
        self.requests = Counter(
            "worker_requests",
            "Jobs by how they ended: outcome, its reason, and the HTTP status it stands for.",
            ["outcome", "reason", "status"],
            registry=into,
        )
        self.refusals = Counter(
            "worker_refusals", "Requests that were refused, by error code.", ["code"], registry=into
        )
        self.cancels = Counter(
            "worker_cancel_requests",
            "Cancel requests, by what was known of the job.",
            ["known"],
            registry=into,
        )
        self.tokens = Counter("worker_tokens_generated", "Tokens generated and told.", registry=into)
        self.prompt_tokens = Counter(
            "worker_prompt_tokens", "Prompt tokens processed, of jobs that ended.", registry=into
        )
        self.steps = Counter(
            "worker_engine_steps", "Steps of the engine, by how they ended.", ["outcome"], registry=into
        )
        self.preemptions = Counter(
            "worker_preemptions", "Jobs put back into the queue because KV cells ran out.", registry=into
        )
        self.audit_faults = Counter(
            "worker_audit_faults", "Times that the engine's books did not agree.", registry=into
        )
        self.step_seconds = Histogram(
            "worker_engine_step_duration_seconds",
            "Duration of a step of the engine.",
            buckets=_LATENCY,
            registry=into,
        )
        self.first_token = Histogram(
            "worker_time_to_first_token_seconds",
            "From acceptance to the first token.",
            buckets=_DURATION,
            registry=into,
        )
        self.inter_token = Histogram(
            "worker_inter_token_latency_seconds",
            "Between two tokens of a job.",
            buckets=_LATENCY,
            registry=into,
        )
        self.inference = Histogram(
            "worker_inference_duration_seconds",
            "From acceptance to the terminal event.",
            buckets=_DURATION,
            registry=into,
        )
        self.cancel_latency = Histogram(
            "worker_cancel_latency_seconds",
            "From a stop's acceptance to its stages.",
            ["stage", "phase"],
            buckets=_LATENCY,
            registry=into,
        )
        self.info = Info("worker_build", "Which worker this is.", registry=into)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def job_ended(self, job: Job) -> None:
        """Count a job by its terminal event."""
        terminal = job.terminal
        if terminal is None:
            return
        self.requests.labels(*_labels(terminal, job.receipt)).inc()
        self.prompt_tokens.inc(job.prompt_processed)
        if job.ended_at is not None:
            self.inference.observe(job.ended_at - job.accepted.mono)
        if job.receipt is not None and job.receipt.reason is not StopReason.DEADLINE:
            self._cancelled(job.receipt)

    def _cancelled(self, receipt: Receipt) -> None:
        stages = {"stopped": receipt.stopped_ms, "freed": receipt.freed_ms, "terminal": receipt.told_ms}
        for stage, took_ms in stages.items():
            if took_ms is not None:
                self.cancel_latency.labels(stage, receipt.phase).observe(took_ms / 1000)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


def _labels(terminal: Terminal, receipt: Receipt | None) -> tuple[str, str, str]:
    """Outcome, reason and status, all out of closed sets."""
    if isinstance(terminal, End):
        return "completed", terminal.stop_reason, "200"
    status = str(KINDS[terminal.code].http_status)
    if terminal.code is ErrorCode.CANCELLED and receipt is not None:
        return "cancelled", receipt.reason.value, status
    outcome = "timeout" if terminal.code is ErrorCode.INFERENCE_TIMEOUT else "failed"
    return outcome, terminal.code.value, status
