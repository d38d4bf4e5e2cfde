"""Jobs as OpenTelemetry spans, following its semantic conventions for generative AI.

Each job has one span, from its acceptance to its terminal event, with events in between. A span never contains the
prompt, the output, stop sequences, or an error's message, which may quote them.

Only this module imports OpenTelemetry, which is an extra, and it is imported only if traces are enabled.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from worker_orcd import __version__
from worker_orcd.jobs.events import End, Terminal
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.receipt import Receipt
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.protocol.messages import Ready
from worker_orcd.supervisor.engine import Death
from worker_orcd.worker.metrics import outcome_of
from worker_orcd.worker.observer import Observer

LAST_EXPORT_SEC = 0.4
"""How long a shutdown waits for the export of the last spans, as part of its five seconds."""
COMPLAINT_INTERVAL_SEC = 60.0
"""Minimum time between two log events about failed exports."""
_PROTOCOL = "http/protobuf"
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_REQUESTED = frozenset({StopReason.CLIENT, StopReason.DISCONNECT, StopReason.SUPERSEDED})
"""Reasons of stops that clients requested, which are not errors."""
_MAX_INT = 2**63 - 1
"""A span's integers are signed, but seeds are not."""
_NS = 1e9

_propagator = TraceContextTextMapPropagator()


class Tracing(Observer):
    """Makes one span per job. A job that is not sampled has no cost after its acceptance."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("worker_orcd", __version__)
        self._spans: dict[int, Span] = {}
        self._model: str | None = None
        self._closing: threading.Thread | None = None
        self._until = 0.0

    @classmethod
    def exporting(cls, worker_id: str) -> Self:
        """Export spans according to the `OTEL_…` variables, by OTLP over HTTP, in batches and on a separate thread.

        Raises:
            ValueError: a variable has an unsupported value.
        """
        protocol = next((os.environ[name] for name in _PROTOCOL_VARIABLES if os.environ.get(name)), _PROTOCOL)
        if protocol != _PROTOCOL:
            raise ValueError(f"the protocol is {protocol!r}, and must be {_PROTOCOL!r}")
        troubles: list[str] = []
        cls.report_to(troubles.append)
        named = {
            "service.name": "worker-orcd",
            "service.version": __version__,
            "service.instance.id": worker_id,
        }
        resource = Resource.create(named).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        if troubles:  # OpenTelemetry itself would use the default.
            raise ValueError(troubles[0])
        return cls(provider)

    # Events.

    def loaded(self, ready: Ready) -> None:
        """Note the model's name."""
        self._model = ready.model

    def accepted(self, job: Job, headers: Mapping[str, str]) -> None:
        """Start a span. A valid `traceparent` of the request makes it part of that trace."""
        span = self._tracer.start_span(
            _name(job, self._model),
            context=_propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes=_asked(job) | _model(self._model, "request"),
            start_time=_ns(job, job.accepted.mono),
        )
        if span.is_recording():
            self._spans[job.run] = span

    def started(self, job: Job) -> None:
        """Add an event to the span, also after a requeue."""
        self._add_event(job, "started")

    def token(self, job: Job, previous_at: float | None, *, generated: bool) -> None:
        """Add an event for the first token."""
        if previous_at is None:
            self._add_event(job, "first_token")

    def preempted(self, job: Job) -> None:
        """Add an event to the span."""
        self._add_event(job, "preempted")

    def lost(self, death: Death, jobs: Sequence[Job]) -> None:
        """Add an event to the spans of the jobs that the engine held."""
        for job in jobs:
            self._add_event(job, "engine_lost")

    def _add_event(self, job: Job, what: str) -> None:
        span = self._spans.get(job.run)
        if span is not None:
            span.add_event(f"worker_orcd.{what}", timestamp=_ns(job, time.monotonic()))

    def ended(self, job: Job) -> None:
        """End the span."""
        span = self._spans.pop(job.run, None)
        terminal, ended_at = job.terminal, job.ended_at
        if span is None or terminal is None or ended_at is None:
            return
        if job.receipt is not None:
            _add_stop_events(span, job, job.receipt, ended_at)
        span.update_name(_name(job, self._model))
        span.set_attributes(
            _model(self._model, "request") | _model(self._model, "response") | _brought(job, terminal)
        )
        if not isinstance(terminal, End) and (job.receipt is None or job.receipt.reason not in _REQUESTED):
            span.set_attribute("error.type", terminal.code.value)
            span.set_status(StatusCode.ERROR)
        span.end(_ns(job, ended_at))

    # Exporting.

    @staticmethod
    def report_to(emit: Callable[[str], None]) -> None:
        """Call `report` with export errors, at most once per `COMPLAINT_INTERVAL_SEC`, on the exporting thread."""
        log = logging.getLogger("opentelemetry")
        log.propagate = False
        log.handlers = [_ExportErrors(emit)]

    def begin_to_close(self) -> None:
        """Begin to export the remaining spans, in the background."""
        if self._closing is None:
            self._until = time.monotonic() + LAST_EXPORT_SEC
            # Not in asyncio's thread pool, whose threads the loop would wait for.
            self._closing = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
            self._closing.start()

    def close(self) -> None:
        """Wait for the last export, at most `LAST_EXPORT_SEC` from its beginning, because the collector may hang."""
        self.begin_to_close()
        if self._closing is not None:
            self._closing.join(max(0.0, self._until - time.monotonic()))


class _ExportErrors(logging.Handler):
    """Reports export errors at a limited rate."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = emit
        self._quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Report the record, unless the last report is recent."""
        if record.created >= self._quiet_until:
            self._quiet_until = record.created + COMPLAINT_INTERVAL_SEC
            self._tell(record.getMessage())


# Attributes.


def _name(job: Job, model: str | None) -> str:
    return f"{_operation(job)} {model}" if model else _operation(job)


def _operation(job: Job) -> str:
    """The operation's name. A prompt with the template `auto` is a conversation of one message."""
    if job.request.dimensions_wanted is not None:
        return "embeddings"
    return "text_completion" if job.request.template in ("none", "tokens", "infill") else "chat"


def _model(model: str | None, of: str) -> dict[str, AttributeValue]:
    return {f"gen_ai.{of}.model": model} if model else {}


def _asked(job: Job) -> dict[str, AttributeValue]:
    """Attributes of the request."""
    request = job.request
    asked: dict[str, AttributeValue] = {
        "gen_ai.operation.name": _operation(job),
        "gen_ai.provider.name": "worker_orcd",
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.response.id": job.job_id,
        "worker_orcd.correlation_id": job.correlation_id,
    }
    if request.max_tokens is not None:
        asked["gen_ai.request.max_tokens"] = request.max_tokens
    for name in ("presence_penalty", "frequency_penalty"):
        if penalty := getattr(request, name):
            asked[f"gen_ai.request.{name}"] = penalty
    if request.top_k:
        asked["gen_ai.request.top_k"] = float(request.top_k)
    if request.seed is not None and request.seed <= _MAX_INT:
        asked["gen_ai.request.seed"] = request.seed
    if request.group is not None:
        asked["worker_orcd.group"] = request.group
    return asked


def _brought(job: Job, terminal: Terminal) -> dict[str, AttributeValue]:
    """Attributes of the result. Token counts are those that clients receive."""
    outcome, reason = outcome_of(terminal, job.receipt)
    brought: dict[str, AttributeValue] = {
        "gen_ai.usage.input_tokens": job.prompt_processed,
        "gen_ai.usage.output_tokens": job.tokens_out,
        "worker_orcd.outcome": outcome,
        "worker_orcd.reason": reason,
        "worker_orcd.phase": job.phase.value,
        "worker_orcd.requeues": job.requeues,
    }
    if job.first_token_at is not None:
        brought["gen_ai.response.time_to_first_chunk"] = job.first_token_at - job.accepted.mono
    if isinstance(terminal, End):
        brought["gen_ai.response.finish_reasons"] = [terminal.stop_reason]
    return brought


def _add_stop_events(span: Span, job: Job, receipt: Receipt, ended_at: float) -> None:
    """Add the four stages of a stop as events."""
    stop = job.stop
    if stop is None:
        return
    asked: dict[str, AttributeValue] = {
        "worker_orcd.reason": receipt.reason.value,
        "worker_orcd.phase": receipt.phase,
    }
    if receipt.cancel_correlation_id is not None:
        asked["worker_orcd.correlation_id"] = receipt.cancel_correlation_id
    held: dict[str, AttributeValue] = {"worker_orcd.kv_cells_before": receipt.kv_cells_before}
    if receipt.kv_cells_after is not None:
        held["worker_orcd.kv_cells_after"] = receipt.kv_cells_after
    began = stop.accepted_at
    for moment, mono, facts in (
        ("accepted", began, asked),
        ("stopped", began + receipt.stopped_ms / 1000, None),
        ("freed", None if receipt.freed_ms is None else began + receipt.freed_ms / 1000, held),
        ("terminal", ended_at, None),
    ):
        if mono is not None:  # Receipts are rounded, but no event may be later than the span's end.
            span.add_event(f"worker_orcd.cancel.{moment}", facts, _ns(job, min(mono, ended_at)))


def _ns(job: Job, mono: float) -> int:
    """A time of the front's monotonic clock as Unix time in ns. Counts from the job's acceptance, so that setting the
    wall clock does not distort spans."""
    return round(job.accepted.unix * _NS) + round((mono - job.accepted.mono) * _NS)
