"""docs/reference.md."""

import dataclasses
import inspect
import json

from tools.docs.examples import cancelled_job, finished_job, idle_worker, silent_narrator
from tools.docs.log_events import log_events_section
from tools.docs.markdown import MADE, code, fenced, first_line, table
from tools.docs.requests import requests_section
from worker_orcd import settings
from worker_orcd.api import sse
from worker_orcd.api.app import create_app
from worker_orcd.jobs import events
from worker_orcd.jobs.errors import KINDS, ErrorCode
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.stop_request import STOP_MESSAGES
from worker_orcd.worker.health import Health
from worker_orcd.worker.single import SingleWorker
from worker_orcd.worker.state_metrics import publish
from worker_orcd.worker.worker import Worker

MEANINGS: dict[ErrorCode, str] = {
    ErrorCode.INVALID_REQUEST: "the request is malformed or can never be met; `param` names the field. "
    "Also 404 for a wrong path, 405 for a wrong method, 413 for a body over 1 MiB",
    ErrorCode.UNAUTHORIZED: "keys are configured (`--api-key-file`, `--operator-key-file`), and the request has no "
    "valid one. As a 403: it has a tenant's key, and `/shutdown` and `/metrics` are for operators",
    ErrorCode.JOB_NOT_FOUND: "only `GET /jobs/{job_id}`: no such job is live or has a record",
    ErrorCode.JOB_ID_IN_USE: "a live job has this id; an id is free again once its job has ended",
    ErrorCode.QUEUE_FULL: "`--max-queue` jobs are waiting, or there are too many readers or connections; "
    "comes with `Retry-After`",
    ErrorCode.DRAINING: "the worker is shutting down; comes with `Retry-After`",
    ErrorCode.CANCELLED: "in a stream: the job was stopped; `reason` says why",
    ErrorCode.INFERENCE_TIMEOUT: "in a stream: the job's deadline passed, waiting included",
    ErrorCode.MODEL_LOAD_FAILED: "at startup: one line on standard error, exit code 1",
    ErrorCode.INSUFFICIENT_VRAM: "at startup with `--gpu-device`: one line on standard error, exit code 1",
    ErrorCode.VRAM_OOM: "in a stream: the GPU ran out of memory during the job",
    ErrorCode.CUDA_ERROR: "in a stream: the GPU failed during the job",
    ErrorCode.ENGINE_LOST: "in a stream: three engines in a row died with the job, without a token in between. "
    "As a 503: no engine can be started any more",
    ErrorCode.INTERNAL: "a fault of the worker; find its log events by the correlation id",
}


def reference_page() -> str:
    """Everything that has a name which a client or an operator may use."""
    worker = idle_worker()
    return "\n\n".join(
        [
            "# Reference",
            "*For users and operators.*",
            MADE,
            "[Options](#options) · [Endpoints](#endpoints) · [Requests](#requests) · [Events](#events) · "
            "[Records and receipts](#records-and-receipts) · [Errors](#errors) · [Headers](#headers) · "
            "[Health](#health) · [Metrics](#metrics) · [Narration](#narration)",
            _options(),
            _endpoints(worker),
            requests_section(),
            _events(),
            _records(),
            _errors(),
            _HEADERS,
            _health(),
            _metrics(worker),
            log_events_section(),
        ]
    )


_HEADERS = """## Headers

`X-Correlation-Id` (or `X-Request-Id`) is used if it is 1 to 128 visible ASCII characters; otherwise a new one is
generated. Every response returns it, and every log event of the request has it, in both processes. The response of
`POST /execute` also has `X-Job-Id`.

A `traceparent` is continued: its trace id becomes the correlation id of a request that has none, and the job's span, if
[traces](observability.md#traces) are on, is part of that trace."""


def _options() -> str:
    rows = [
        (code(o.flag), code(o.variable), o.requirement, o.default, o.description) for o in settings.options()
    ]
    return "\n\n".join(
        [
            "## Options",
            "These are the options of `worker-orcd` and `worker-orcd serve`, which are the same command. "
            "A flag overrides its environment variable, a variable overrides the default.",
            table(("flag", "variable", "type and bounds", "default", "meaning"), rows),
        ]
    )


def _endpoints(worker: Worker) -> str:
    app = create_app(SingleWorker(worker), silent_narrator(), lambda _: None)
    rows = []
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            answers = ", ".join(sorted(operation["responses"]))
            rows.append((code(f"{method.upper()} {path}"), operation.get("summary", ""), answers))
    return "\n\n".join(
        [
            "## Endpoints",
            table(("request", "what it does", "status codes"), rows),
            "`GET /openapi.json` is the machine-readable description, `GET /docs` the readable one; both work offline.",
        ]
    )


def _events() -> str:
    rows = []
    for kind in (events.Started, events.Progress, events.Token, events.End, events.Error):
        fields = list(inspect.signature(kind).parameters)
        if kind is events.Progress:
            fields.remove("time_ms")
        if kind is events.Error:
            fields = ["code", "message", "retriable", "…"]
        rows.append((code(kind.name), ", ".join(code(name) for name in fields), first_line(kind)))
    reasons = [(code(reason), message) for reason, message in STOP_MESSAGES.items()]
    return "\n\n".join(
        [
            "## Events",
            "`started`, `progress`\\*, `token`\\*, then exactly one of `end` or `error`; or just `error`, for a job "
            "that is stopped or fails before it starts. `id:` is `<incarnation>.<number>`: the numbers count "
            "0, 1, 2 … within the job, and the incarnation is unique to this use of the job id, also across restarts "
            "of the worker. A `Last-Event-ID` of another use is a 404; a reader that has seen the terminal event gets "
            "204, which ends an `EventSource`. A comment keeps an idle stream alive every "
            f"{sse.KEEP_ALIVE_SEC:.0f} s.",
            table(("event", "data", "meaning"), rows),
            "`stop_reason` is `stop` (the model ended it), `length` (`max_tokens` reached) or `stop_sequence`. "
            "`tokens_out` counts generated tokens; text that was held back until the end is sent in one more `token` "
            "event. Every `error` of a job also has `phase` (`queued`, `loading`, `prefill`, `decode`), "
            "`prompt_tokens` (how many were processed) and `tokens_out`.",
            "With `logprobs` in the request, the `token` event of each token has `logprobs`: an object with `id`, "
            "`token`, `bytes` and `logprob`, and the most likely tokens in `top_logprobs`.",
            "The stream of a cancelled job:",
            fenced("text", _stream(cancelled_job())),
            "The stream of a job that came to its natural end:",
            fenced("text", _stream(finished_job())),
            "The `reason` of `CANCELLED` is one of:",
            table(("reason", "message"), reasons),
            "A `superseded` job was [replaced by a newer one](prefixes.md#the-newest-job-wins) with the same "
            "`supersedes`; its record names the newer one in `superseded_by`.",
        ]
    )


def _stream(job: Job) -> str:
    return sse.encode(list(enumerate(job.events)), job.incarnation).decode()


def _records() -> str:
    return "\n\n".join(
        [
            "## Records and receipts",
            '`GET /jobs/{job_id}` returns a job\'s record; `GET /jobs` returns all of them as `{"jobs": [...]}`. '
            "Ended jobs are kept for 5 minutes, at most 10,000 of them.",
            "The `receipt` of a job that was stopped says when the stop took effect, in milliseconds from the moment "
            "it was accepted: computing stopped, memory freed, terminal event written. `freed_ms` and "
            "`kv_cells_after` are null if not even the engine's death could be confirmed in time.",
            fenced("json", json.dumps(record_of(cancelled_job()), indent=2)),
        ]
    )


def _errors() -> str:
    rows = [
        (
            code(error),
            str(kind.http_status),
            "yes" if kind.retriable else "no",
            kind.fault.value,
            MEANINGS[error],
        )
        for error, kind in KINDS.items()
    ]
    return "\n\n".join(
        [
            "## Errors",
            'All errors have one shape: `{"error": {"code", "message", "retriable", "param"?}}`; in a stream, the '
            "inner object is the data of the `error` event.",
            table(("code", "HTTP", "retriable", "at fault", "when"), rows),
        ]
    )


def _health() -> str:
    names = ", ".join(code(field.name) for field in dataclasses.fields(Health))
    return (
        "## Health\n\n"
        f"`GET /health` is 200 when `status` is `healthy`, 503 when it is `loading`, `draining` or `unhealthy`. "
        f"Fields: {names}. Fields that need a loaded engine are null without one. `kv_cells_used` counts the cells "
        "of live jobs, `kv_cells_cached` those kept for later jobs, and `prefix_store_bytes` is the host memory of "
        "stored [prefixes](prefixes.md). With keys, only an operator's key sees "
        "the reason in full, and with `--private-load` only an operator's key sees load figures: the cells used and "
        "cached, the bytes stored, and the jobs running and queued are null for all others."
    )


def _metrics(worker: Worker) -> str:
    publish(worker)
    suffixes = {"counter": "_total", "info": "_info"}
    rows = [
        (
            code(family.name + suffixes.get(family.type, "")),
            family.type,
            ", ".join(
                map(
                    code,
                    dict.fromkeys(label for one in family.samples for label in one.labels if label != "le"),
                )
            ),
            family.documentation,
        )
        for family in worker.metrics.registry.collect()
    ]
    return "\n\n".join(
        [
            "## Metrics",
            "`GET /metrics` is for Prometheus; with keys, it needs an operator's key. "
            "[How to use them](observability.md#metrics).",
            table(("name", "type", "labels", "meaning"), rows),
        ]
    )
