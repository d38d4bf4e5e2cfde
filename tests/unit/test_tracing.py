"""Jobs as spans: what a span has, its times, and what is never in it. The whole worker in virtual time."""

import asyncio
import io
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from tests.fakes import QUICK, at, execute, queued_job, stop_request
from tests.simulation.clock import VirtualLoop, virtual_time
from tests.simulation.engine import VirtualEngine, Weather
from worker_orcd.jobs.events import Token
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.request import Ceilings
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.narration import Narrator
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.tracing import LAST_EXPORT_SEC, Tracing
from worker_orcd.worker.worker import Worker

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the quick brown fox"
CANCEL_EVENTS = [f"worker_orcd.cancel.{moment}" for moment in ("accepted", "stopped", "freed", "terminal")]


class Stage:
    """A worker with an engine in virtual time, whose spans are kept."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.engines: list[VirtualEngine] = []
        policy = Policy(ceilings=Ceilings(max_tokens_out=600))
        narrator = Narrator.configure("worker", log_format="json", stream=io.StringIO())
        self.worker = Worker(policy, self.launch, narrator, worker_id="w", model_path="m")
        self.tracing = Tracing(provider)
        self.worker.subscribe(self.tracing)

    async def launch(self, listener: EngineListener) -> Engine:
        """Start the next engine."""
        self.engines.append(VirtualEngine(listener, random.Random(1), Weather(), 100 + len(self.engines)))
        return self.engines[-1]

    async def until(self, look: Callable[[], object], within_sec: float = 30.0) -> None:
        """Let time pass until a condition holds."""
        deadline = self.loop.time() + within_sec
        while not look():
            assert self.loop.time() < deadline, "it never came"
            await asyncio.sleep(0.0005)

    async def ready(self) -> None:
        """Let the engine load."""
        self.worker.start()
        await self.until(self.worker.ready.is_set)

    def job(self, job_id: str = "job-1", headers: Mapping[str, str] | None = None, **given: Any) -> Job:
        """Execute a job."""
        asked = execute(job_id, **{"prompt": QUICK + SECRET, "max_tokens": 20, **given})
        return self.worker.execute([asked], f"cor-{job_id}", headers=headers or {})[0].job

    async def ended(self, *jobs: Job) -> None:
        """Wait until these jobs have ended."""
        await self.until(lambda: not any(job.live for job in jobs))

    def span(self, job: Job) -> ReadableSpan:
        """The one span of a job."""
        (span,) = [one for one in self.exporter.get_finished_spans() if attributes(one)[_ID] == job.job_id]
        return span


_ID = "gen_ai.response.id"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """The span's attributes."""
    return dict(span.attributes or {})


def names(span: ReadableSpan) -> list[str]:
    """The names of the span's events, in order."""
    return [event.name for event in span.events]


def seconds(span: ReadableSpan, name: str) -> float:
    """Seconds from the span's start to its first event of this name."""
    at_ns = next(event.timestamp for event in span.events if event.name == name)
    return (at_ns - (span.start_time or 0)) / 1e9


def length(span: ReadableSpan) -> float:
    """Seconds from the span's start to its end."""
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A stage; scenarios are run by `stage.loop.run_until_complete`."""
    with virtual_time() as loop:
        asyncio.set_event_loop(loop)
        try:
            yield Stage(loop)
            assert not loop.failures, loop.failures
        finally:
            loop.cancel_everything()
            asyncio.set_event_loop(None)


def play(stage: Stage, story: Coroutine[Any, Any, Job]) -> tuple[Job, ReadableSpan]:
    """Run a scenario. Returns its job and the job's span."""
    job = stage.loop.run_until_complete(story)
    return job, stage.span(job)


# How a job can end.


def test_a_completed_job_is_one_span_with_what_was_asked_and_what_came(stage: Stage) -> None:
    """Of kind server, named by operation and model, from acceptance to the end, and no error."""

    async def story() -> Job:
        await stage.ready()
        job = stage.job(temperature=0.5, top_p=0.9, top_k=7, group="g")
        await stage.ended(job)
        return job

    job, span = play(stage, story())
    assert (span.name, span.kind, span.parent) == ("chat m", SpanKind.SERVER, None)
    assert (span.status.status_code, span.status.description) == (StatusCode.UNSET, None)
    assert names(span) == ["worker_orcd.started", "worker_orcd.first_token"]
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "worker_orcd",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 7.0,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": "job-1",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.response.time_to_first_chunk": pytest.approx(seconds(span, "worker_orcd.first_token")),
        "gen_ai.usage.input_tokens": len((QUICK + SECRET).encode()),
        "gen_ai.usage.output_tokens": 20,
        "worker_orcd.correlation_id": "cor-job-1",
        "worker_orcd.group": "g",
        "worker_orcd.outcome": "completed",
        "worker_orcd.reason": "length",
        "worker_orcd.phase": "decode",
        "worker_orcd.requeues": 0,
    }
    assert job.started_at is not None
    assert job.ended_at is not None
    assert (span.start_time or 0) / 1e9 == pytest.approx(job.accepted.unix, abs=1e-6)
    assert seconds(span, "worker_orcd.started") == pytest.approx(job.started_at - job.accepted.mono, abs=1e-6)
    assert length(span) == pytest.approx(job.ended_at - job.accepted.mono, abs=1e-6)


async def _in_queue(stage: Stage) -> Job:
    """Four jobs run, so this one waits."""
    for number in range(4):
        stage.job(f"other-{number}", max_tokens=100)
    job = stage.job()
    await stage.until(lambda: job.prompt_tokens is not None)
    return job


async def _in_prefill(stage: Stage) -> Job:
    """The engine computes its prompt."""
    job = stage.job(prompt=QUICK + "x" * 500)
    await stage.until(lambda: job.prompt_processed > 0)
    return job


async def _in_decode(stage: Stage) -> Job:
    """It has generated text."""
    job = stage.job(max_tokens=200)
    await stage.until(lambda: len(job.tokens) > 3)
    return job


@pytest.mark.parametrize(
    ("phase", "brought_to"), [("queued", _in_queue), ("prefill", _in_prefill), ("decode", _in_decode)]
)
def test_a_cancelled_jobs_span_has_the_stages_of_its_stop_and_is_no_error(
    stage: Stage, phase: str, brought_to: Callable[[Stage], Coroutine[Any, Any, Job]]
) -> None:
    """The span has the receipt's times (accepted, stopped, freed, terminal), the reason, the phase, and what was
    held."""

    async def story() -> Job:
        await stage.ready()
        job = await brought_to(stage)
        stage.worker.cancel(job.job_id, "cor-cancel")
        await stage.ended(job)
        return job

    job, span = play(stage, story())
    receipt = job.receipt
    assert receipt is not None
    assert job.stop is not None
    said = attributes(span)
    assert (said["worker_orcd.outcome"], said["worker_orcd.reason"]) == ("cancelled", "client")
    assert said["worker_orcd.phase"] == phase
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (
        receipt.prompt_tokens,
        receipt.tokens_out,
    )
    assert "gen_ai.response.finish_reasons" not in said
    assert (span.status.status_code, "error.type" in said) == (StatusCode.UNSET, False)
    assert names(span)[-4:] == CANCEL_EVENTS
    accepted, _, freed, _ = span.events[-4:]
    assert dict(accepted.attributes or {}) == {
        "worker_orcd.reason": "client",
        "worker_orcd.phase": phase,
        "worker_orcd.correlation_id": "cor-cancel",
    }
    assert dict(freed.attributes or {}) == {
        "worker_orcd.kv_cells_before": receipt.kv_cells_before,
        "worker_orcd.kv_cells_after": 0,
    }
    asked = job.stop.accepted_at - job.accepted.mono
    for name, ms in zip(
        CANCEL_EVENTS, (0.0, receipt.stopped_ms, receipt.freed_ms, receipt.terminal_ms), strict=True
    ):
        assert ms is not None
        assert seconds(span, name) == pytest.approx(asked + ms / 1000, abs=1e-5), name
    assert length(span) == pytest.approx(seconds(span, CANCEL_EVENTS[-1]), abs=1e-5)


@pytest.mark.parametrize(("reason", "is_error"), [("disconnect", False), ("shutdown", True)])
def test_a_stop_that_its_client_did_not_want_is_an_error(stage: Stage, reason: str, is_error: bool) -> None:
    """A client that disconnects wants the end; a shutdown takes the job from its client."""

    async def story() -> Job:
        await stage.ready()
        job = await _in_decode(stage)
        stage.worker.stop(job, StopReason(reason))
        await stage.ended(job)
        return job

    _, span = play(stage, story())
    assert attributes(span)["worker_orcd.reason"] == reason
    assert attributes(span).get("error.type") == ("CANCELLED" if is_error else None)
    assert (span.status.status_code is StatusCode.ERROR) == is_error


def test_a_timed_out_jobs_span_is_an_error_and_has_its_stop(stage: Stage) -> None:
    """`error.type` is the code that the client gets."""

    async def story() -> Job:
        await stage.ready()
        job = stage.job(max_tokens=400, timeout_ms=500)
        await stage.ended(job)
        return job

    _, span = play(stage, story())
    said = attributes(span)
    assert (said["error.type"], said["worker_orcd.outcome"]) == ("INFERENCE_TIMEOUT", "timed_out")
    assert span.status.status_code is StatusCode.ERROR
    assert names(span)[-4:] == CANCEL_EVENTS
    assert seconds(span, CANCEL_EVENTS[0]) == pytest.approx(0.5, abs=0.002)


def test_a_failed_job_is_an_error(stage: Stage) -> None:
    """The device failed. The span has the code and no message."""

    async def story() -> Job:
        await stage.ready()
        job = stage.job(prompt='{"token_ms": 0, "row_ms": 0, "fail_at": 2}')
        await stage.ended(job)
        return job

    job, span = play(stage, story())
    terminal = job.terminal
    assert terminal is not None
    assert attributes(span)["worker_orcd.outcome"] == "failed"
    assert attributes(span)["error.type"] == terminal.data()["code"] == "INTERNAL"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)


def test_a_job_requeued_after_an_engines_death_has_the_death_in_its_span_and_completes(stage: Stage) -> None:
    """One span covers both engines; the span of a job that only waited has no event for the death."""

    async def story() -> Job:
        await stage.ready()
        job = await _in_decode(stage)
        stage.engines[-1].die()
        bystander = stage.job("bystander")
        await stage.ended(job, bystander)
        assert names(stage.span(bystander)) == ["worker_orcd.started", "worker_orcd.first_token"]
        return job

    _, span = play(stage, story())
    assert names(span) == [
        "worker_orcd.started",
        "worker_orcd.first_token",
        "worker_orcd.engine_lost",
        "worker_orcd.started",
    ]
    times = [event.timestamp for event in span.events]
    assert times == sorted(times)
    said = attributes(span)
    assert (said["worker_orcd.requeues"], said["worker_orcd.outcome"]) == (1, "completed")
    assert said["gen_ai.usage.output_tokens"] == 200
    assert span.status.status_code is StatusCode.UNSET


def test_a_job_that_was_preempted_for_lack_of_cells_shows_it(stage: Stage) -> None:
    """Four growing jobs do not fit to their ends: one is preempted and starts again."""

    async def story() -> Job:
        await stage.ready()
        jobs = [stage.job(f"job-{number}", max_tokens=250) for number in range(4)]
        await stage.ended(*jobs)
        return max(jobs, key=lambda job: job.requeues)

    job, span = play(stage, story())
    assert job.requeues
    assert names(span)[:4] == [
        "worker_orcd.started",
        "worker_orcd.first_token",
        "worker_orcd.preempted",
        "worker_orcd.started",
    ]


def test_a_job_that_waits_for_the_model_is_named_by_it_in_the_end(stage: Stage) -> None:
    """The model's name is not known when the job is accepted."""

    async def story() -> Job:
        stage.worker.start()
        job = stage.job(template="none")
        await stage.ended(job)
        return job

    _, span = play(stage, story())
    assert span.name == "text_completion m"
    assert attributes(span)["gen_ai.request.model"] == attributes(span)["gen_ai.response.model"] == "m"


def test_a_cancel_that_was_here_first_is_a_span_too(stage: Stage) -> None:
    """The span of a job whose cancel overtook it."""

    async def story() -> Job:
        stage.worker.cancel("job-1", "cor-early")
        return stage.job()

    _, span = play(stage, story())
    assert names(span) == CANCEL_EVENTS
    assert length(span) == 0
    assert (span.name, attributes(span)["worker_orcd.phase"]) == ("chat", "loading")


# Whose part it is.


def _started_with(stage: Stage, headers: Mapping[str, str]) -> list[ReadableSpan]:
    async def story() -> None:
        await stage.ready()
        await stage.ended(stage.job(headers=headers))

    stage.loop.run_until_complete(story())
    return list(stage.exporter.get_finished_spans())


def test_a_span_is_part_of_its_requests_trace(stage: Stage) -> None:
    """`traceparent` names the trace, and `tracestate` is continued."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value"}
    (span,) = _started_with(stage, headers)
    assert span.parent is not None
    assert span.parent.is_remote
    assert f"{span.context.trace_id:032x}" == f"{span.parent.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.to_header() == "vendor=value"


def test_what_its_request_did_not_sample_is_not_sampled(stage: Stage) -> None:
    """Nothing of the job is kept for its span."""

    async def story() -> None:
        await stage.ready()
        job = stage.job(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        assert stage.tracing._spans == {}
        await stage.ended(job)

    stage.loop.run_until_complete(story())
    assert stage.exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01" + "-" * 600,
    ],
)
def test_a_bad_traceparent_is_ignored(stage: Stage, traceparent: str) -> None:
    """The span begins a trace of its own."""
    (span,) = _started_with(stage, {"traceparent": traceparent})
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


# What is in it, and what is not.


def test_neither_prompt_nor_output_is_ever_in_a_span(stage: Stage) -> None:
    """Nor stop sequences, nor messages of errors, which may quote them; whichever way the job ends."""

    async def story() -> list[Job]:
        await stage.ready()
        jobs = [stage.job("completed", stop=(SECRET,)), stage.job("too-long", prompt=SECRET * 100)]
        await stage.ended(*jobs)
        jobs.append(stage.job("failed", prompt='{"token_ms": 0, "row_ms": 0, "fail_at": 2}' + SECRET))
        await stage.ended(*jobs)
        jobs.append(await _in_decode(stage))
        stage.worker.cancel(jobs[-1].job_id, "cor-cancel")
        await stage.ended(*jobs)
        return jobs

    jobs = stage.loop.run_until_complete(story())
    spans = stage.exporter.get_finished_spans()
    assert len(spans) == len(jobs)
    assert {attributes(span)["worker_orcd.outcome"] for span in spans} == {"completed", "failed", "cancelled"}
    reported = (event for job in jobs for event in job.events if isinstance(event, Token))
    words = {event.t.strip() for event in reported} - {""}
    assert len(words) > 20
    for span in spans:
        for secret in (SECRET, SECRET.split()[1], *words):
            assert secret not in span.to_json()


def test_names_are_those_of_the_conventions(stage: Stage) -> None:
    """Every `gen_ai.` name is in the published conventions, and none is deprecated there."""

    async def story() -> Job:
        await stage.ready()
        job = stage.job(top_k=3)
        await stage.ended(job)
        return job

    _, span = play(stage, story())
    used = {name for name in attributes(span) if name.startswith("gen_ai.")}
    published = re.findall(
        r'^GEN_AI_\w+: Final = "([^"]+)"\n"""\n(.*)$', getsource(gen_ai_attributes), re.MULTILINE
    )
    current = {name for name, note in published if "Replaced" not in note and "Removed" not in note}
    assert len(used) > 10
    assert used <= current


def test_every_name_in_a_span_is_explained_on_the_page(stage: Stage) -> None:
    """For a job that was requeued and stopped by a shutdown, and for one that completed."""

    async def story() -> None:
        await stage.ready()
        job = stage.job(group="g", top_k=3, max_tokens=500)
        await stage.until(lambda: job.tokens)
        stage.engines[-1].die()
        await stage.until(lambda: job.requeues and job.state is State.RUNNING)
        stage.worker.stop(job, StopReason.SHUTDOWN)
        await stage.ended(job, stage.job("ends"))

    stage.loop.run_until_complete(story())
    used: set[str] = set()
    for span in stage.exporter.get_finished_spans():
        used |= {*attributes(span), *names(span)}
        used |= {name for event in span.events for name in event.attributes or {}}
    assert {"worker_orcd.engine_lost", "error.type", "worker_orcd.kv_cells_after"} <= used
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")
    assert {name for name in used if f"`{name}`" not in page} == set()


def test_a_seed_that_is_no_signed_number_is_left_out() -> None:
    """A span's numbers are signed 64-bit; an exporter would lose the whole batch of such a span."""
    exporter, tracing = _kept()
    for run, seed in enumerate((2**63 - 1, 2**63)):
        _end(tracing, queued_job(run=run, seed=seed))
    seeds = [attributes(span).get("gen_ai.request.seed") for span in exporter.get_finished_spans()]
    assert seeds == [2**63 - 1, None]


def test_an_unconfirmed_stop_has_no_freed_event() -> None:
    """Its receipt has none either."""
    exporter, tracing = _kept()
    job = queued_job()
    tracing.accepted(job, {})
    job.measured((1, 2, 3), 8)
    job.handed_over()
    job.started(at(1), "m")
    job.request_stop(stop_request(seconds=2.0))
    job.give_up(at(7))
    tracing.ended(job)
    (span,) = exporter.get_finished_spans()
    assert names(span) == [CANCEL_EVENTS[0], CANCEL_EVENTS[1], CANCEL_EVENTS[3]]
    assert seconds(span, CANCEL_EVENTS[3]) == pytest.approx(7.0)


# Exporting never stands in the way.


def _kept() -> tuple[InMemorySpanExporter, Tracing]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, Tracing(provider)


def _end(tracing: Tracing, job: Job) -> None:
    tracing.accepted(job, {})
    job.request_stop(stop_request())
    tracing.ended(job)


class Hanging(SpanExporter):
    """An exporter that hangs with its first batch until it is released."""

    def __init__(self) -> None:
        self.taken = threading.Event()
        self.drop_run_data = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hang."""
        self.taken.set()
        self.drop_run_data.wait(60)
        return SpanExportResult.FAILURE


def test_a_collector_that_hangs_holds_up_neither_jobs_nor_the_end() -> None:
    """Spans beyond the bound are dropped, and the worker exits after a moment."""
    exporter = Hanging()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=20, max_export_batch_size=10, schedule_delay_millis=10)
    )
    tracing = Tracing(provider)
    _end(tracing, queued_job(run=1))
    assert exporter.taken.wait(10)
    began = time.monotonic()
    for run in range(2, 200):
        _end(tracing, queued_job(run=run))
    assert time.monotonic() - began < 2.0
    began = time.monotonic()
    tracing.begin_to_close()
    tracing.close()
    assert time.monotonic() - began < LAST_EXPORT_SEC + 1.0
    exporter.drop_run_data.set()


def test_the_last_spans_are_exported_at_the_end() -> None:
    """Though the batch's interval has not passed."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=60_000))
    tracing = Tracing(provider)
    _end(tracing, queued_job())
    tracing.close()
    assert len(exporter.get_finished_spans()) == 1


def test_troubles_with_exporting_are_reported_once_in_a_while_and_nowhere_else() -> None:
    """A collector that is down for a night does not fill the log."""
    log = logging.getLogger("opentelemetry")
    before = (log.handlers, log.propagate)
    reported: list[str] = []
    try:
        Tracing.report_to(reported.append)
        for _ in range(3):
            logging.getLogger("opentelemetry.sdk").warning("cannot reach %s", "it")
        logging.getLogger("opentelemetry.sdk").info("nothing to see")
    finally:
        log.handlers, log.propagate = before
    assert reported == ["cannot reach it"]


def test_only_otlp_over_http_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables for another protocol are refused, not ignored."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValueError, match="grpc"):
        Tracing.exporting("w")
