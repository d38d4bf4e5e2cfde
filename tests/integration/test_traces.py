"""Spans over the wire: from a real worker's process to a collector on this machine, by OTLP over HTTP."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.helpers import fresh_id, script
from worker_orcd.testing.harness import RunningWorker, free_port, running_worker, wait_until

SLOW = script(token_ms=5)
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """A collector on a port of its own. One that hangs accepts requests and never answers."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.spans: list[Span] = []
        self.service: dict[str, str] = {}
        self.scopes: set[str] = set()
        self.paths: set[str] = set()
        self.drop_run_data = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hangs:
                    collector.drop_run_data.wait(60)
                    return
                collector.take(self.path, ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's signature
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, path: str, batch: ExportTraceServiceRequest) -> None:
        """A batch of spans."""
        self.paths.add(path)
        for resource in batch.resource_spans:
            self.service |= {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.scopes.add(scope.scope.name)
                self.spans.extend(scope.spans)

    def variables(self, delay_ms: int = 50) -> dict[str, str]:
        """The variables that an operator sets to send spans here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=tests",
            "OTEL_BSP_SCHEDULE_DELAY": str(delay_ms),
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def span_of(self, job_id: str) -> Span:
        """Wait for a job's span."""

        def look() -> Span | None:
            return next((one for one in list(self.spans) if said(one)["gen_ai.response.id"] == job_id), None)

        return wait_until(look, what=f"the span of {job_id}")

    def close(self) -> None:
        """Stop accepting spans."""
        self.drop_run_data.set()
        self.server.shutdown()
        self.server.server_close()


def said(span: Span) -> dict[str, object]:
    """Its attributes."""
    values = {one.key: one.value for one in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that accepts spans."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def hanging_collector() -> Iterator[Collector]:
    """A collector that hangs."""
    collector = Collector(hangs=True)
    yield collector
    collector.close()


@pytest.mark.real
def test_a_cancelled_job_of_the_real_worker_arrives_at_a_collector(collector: Collector) -> None:
    """The command as people run it, `OTEL_` variables, a client's trace, a cancel: one span, with the cancel in it."""
    with running_worker("llama", traces=True, parallel=2, env=collector.variables()) as worker:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = {"job_id": "traced", "prompt": "Count to a thousand.", "max_tokens": 1000, "ignore_eos": True}
        with worker.client.stream("POST", "/execute", json=body, headers=headers) as answer:
            reported = answer.iter_lines()
            assert "event: token" in reported
            before = time.time()
            worker.cancel("traced", **{"X-Correlation-Id": "who-cancels"})
            after = time.time()
            assert "event: error" in reported
        span = collector.span_of("traced")
        record = worker.record("traced")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.name == f"chat {said(span)['gen_ai.response.model']}"
    assert (said(span)["worker_orcd.outcome"], said(span)["worker_orcd.phase"]) == ("cancelled", "decode")
    assert said(span)["gen_ai.usage.output_tokens"] == record["tokens_out"]
    events = {event.name.removeprefix("worker_orcd."): event for event in span.events}
    cancel = [
        events[f"cancel.{moment}"].time_unix_nano for moment in ("accepted", "stopped", "freed", "terminal")
    ]
    assert cancel == sorted(cancel)
    assert before <= cancel[0] / 1e9 <= after
    assert cancel[-1] == span.end_time_unix_nano
    assert (cancel[1] - cancel[0]) / 1e6 == pytest.approx(record["receipt"]["stopped_ms"], abs=0.01)
    assert [
        one.value.string_value for one in events["cancel.accepted"].attributes if "correlation" in one.key
    ] == ["who-cancels"]
    assert (collector.paths, collector.scopes) == ({"/v1/traces"}, {"worker_orcd"})
    assert collector.service["service.name"] == "worker-orcd"
    assert collector.service["deployment.environment.name"] == "tests"
    assert len(collector.service["service.instance.id"]) == 36


def test_the_last_spans_leave_with_the_worker(collector: Collector) -> None:
    """A shutdown neither waits for the next batch nor loses its spans."""
    with running_worker(traces=True, drain_sec=0.2, env=collector.variables(delay_ms=600_000)) as worker:
        done = worker.execute(fresh_id(), max_tokens=2).finished()
        running = worker.execute(fresh_id(), SLOW).tokens_seen(1)
        assert worker.stop() == 0
    assert said(collector.span_of(done.job_id))["worker_orcd.outcome"] == "completed"
    last = said(collector.span_of(running.job_id))
    assert (last["worker_orcd.reason"], last["error.type"]) == ("shutdown", "CANCELLED")


def test_a_collector_that_hangs_slows_neither_streams_nor_the_end(hanging_collector: Collector) -> None:
    """Jobs continue, and the worker exits within five seconds even if a job runs until the end of the drain."""
    with running_worker(traces=True, env=hanging_collector.variables()) as worker:
        for _ in range(20):
            worker.execute(fresh_id(), script(token_ms=0), max_tokens=2).finished(within_sec=5).assert_whole()
        stream = worker.execute(fresh_id(), SLOW).tokens_seen(1)
        asked_at = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: worker.process.poll() is not None, within_sec=10, what="the exit")
        assert time.monotonic() - asked_at <= 5.0
        assert worker.process.returncode == 0
        stream.finished(within_sec=1.0).assert_whole()


def test_a_collector_that_is_not_there_is_reported_once(worker_without_collector: RunningWorker) -> None:
    """By a log event, like other faults."""
    worker = worker_without_collector
    for _ in range(3):
        worker.execute(fresh_id(), max_tokens=2).finished()
    reported = worker.narrated("error", code="INTERNAL", within_sec=10)
    assert reported["message"].startswith("traces: ")
    worker.execute(fresh_id(), max_tokens=2).finished()
    assert [event["action"] for event in worker.narration()].count("error") == 1
    assert all(line.startswith("{") for line in worker.log.read_text().splitlines())


@pytest.fixture
def worker_without_collector() -> Iterator[RunningWorker]:
    """A worker without a collector."""
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "NO_PROXY": "127.0.0.1",
    }
    with running_worker(traces=True, env=variables) as worker:
        yield worker


def _refused(*arguments: str, **variables: str) -> str:
    """The output of a command that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "worker_orcd.cli.main", "--port", str(free_port()), *arguments],
        check=False,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_traces_without_the_extra_are_refused_in_one_line(tmp_path: Path) -> None:
    """With what to install; nothing is loaded."""
    (tmp_path / "opentelemetry" / "sdk").mkdir(parents=True)
    (tmp_path / "opentelemetry" / "sdk" / "__init__.py").write_text("raise ImportError('no SDK here')\n")
    said_so = _refused("--traces", PYTHONPATH=str(tmp_path))
    assert said_so == (
        "worker-orcd: INVALID_REQUEST: --traces requires the extra `otel` (pip install 'worker-orcd[otel]'), but there "
        "is no SDK here\n"
    )


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc'"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "'soon'"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0", "max_export_batch_size"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "sometimes"),
    ],
)
def test_a_variable_that_cannot_be_kept_is_refused_in_one_line(variable: str, value: str, why: str) -> None:
    """Before anything is loaded."""
    said_so = _refused("--traces", **{variable: value})
    assert said_so.startswith(
        "worker-orcd: INVALID_REQUEST: --traces requires supported values of the OTEL_ variables, but"
    )
    assert why in said_so
    assert said_so.count("\n") == 1


def test_without_the_option_opentelemetrys_sdk_is_not_even_imported() -> None:
    """Traces are off by default and then cost nothing. FastAPI needs OpenTelemetry's API, so that is imported."""
    program = (
        "import sys, worker_orcd.cli.serve, worker_orcd.api.app; "
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
