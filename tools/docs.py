"""Writes the pages of the documentation that are made from the code: `python -m tools.docs`.

With `--check` nothing is written; the names of pages that are not current are printed, and the exit code is 1.
No model is loaded and no engine started: the examples are what the pure core does when it is given a sequence of facts.
"""

import argparse
import ast
import dataclasses
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from worker_orcd import narration, settings
from worker_orcd.api import sse
from worker_orcd.api.app import create_app
from worker_orcd.jobs import events, lifecycle
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.dispatcher import Dispatcher, ReadyEngine
from worker_orcd.jobs.errors import KINDS, ErrorCode
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import Capacity
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.request import Body, CancelRequest, Ceilings, ExecuteRequest
from worker_orcd.jobs.stop_request import STOP_MESSAGES, StopReason, StopRequest
from worker_orcd.narration.reference import reference_markdown
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.worker.health import Health
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.state_metrics import publish
from worker_orcd.worker.worker import Worker

DOCS = Path(__file__).parent.parent / "docs"
_MADE = "<!-- Made by `make docs` from the code; change it there. -->"

MEANINGS: dict[ErrorCode, str] = {
    ErrorCode.INVALID_REQUEST: "the request is malformed or can never be met; `param` names the field. "
    "Also 404 for a wrong path, 405 for a wrong method, 413 for a body over 1 MiB",
    ErrorCode.UNAUTHORIZED: "keys are configured (`--api-key-file`, `--operator-key-file`), and the request has none "
    "that fits. As a 403: it has a tenant's, and `/shutdown` and `/metrics` are for operators",
    ErrorCode.JOB_NOT_FOUND: "only `GET /jobs/{job_id}`: no such job is live or remembered",
    ErrorCode.JOB_ID_IN_USE: "a live job has this id; an id is free again once its job has ended",
    ErrorCode.QUEUE_FULL: "`--max-queue` jobs are waiting, or there are too many readers or connections; "
    "comes with `Retry-After`",
    ErrorCode.DRAINING: "the worker is shutting down; comes with `Retry-After`",
    ErrorCode.CANCELLED: "in a stream: the job was stopped; `reason` says by whom",
    ErrorCode.INFERENCE_TIMEOUT: "in a stream: the job's deadline passed, waiting included",
    ErrorCode.MODEL_LOAD_FAILED: "at startup: one line on standard error, exit code 1",
    ErrorCode.INSUFFICIENT_VRAM: "at startup with `--gpu-device`: one line on standard error, exit code 1",
    ErrorCode.VRAM_OOM: "in a stream: the GPU ran out of memory during the job",
    ErrorCode.CUDA_ERROR: "in a stream: the GPU failed during the job",
    ErrorCode.ENGINE_LOST: "in a stream: three engines in a row died with the job, without a token in between. "
    "As a 503: it cannot be started any more",
    ErrorCode.INTERNAL: "our fault; the correlation id is how it is found in the narration",
}


# Markdown.


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: object) -> str:
    """As code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def first_line(documented: object) -> str:
    """The first sentence or paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def described(kind: type) -> dict[str, str]:
    """Each member of an enum, by its value, with the docstring that stands below it."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - a class's source is a class
    reported: dict[str, str] = {}
    member = ""
    for node in body.body:
        match node:
            case ast.Assign(value=ast.Constant(value=str(value))):
                member = reported[value] = ""
                member = value
            case ast.Expr(value=ast.Constant(value=str(text))) if member:
                reported[member] = " ".join(text.split())
    return reported


# docs/lifecycle.md


def lifecycle_page() -> str:
    """The lifecycle table as a diagram, as rows, and in words."""
    rows = [
        (code(state), code(trigger), code(target))
        for state, row in lifecycle.TRANSITIONS.items()
        for trigger, target in row.items()
    ]
    return "\n\n".join(
        [
            "# The life of a job",
            _MADE,
            "Everything that may happen to a job's state is one table, `TRANSITIONS` in "
            "`src/worker_orcd/jobs/lifecycle.py`. "
            "A trigger that a state does not list is illegal: it raises, and the job stays as it was.",
            fenced("mermaid", lifecycle.mermaid()),
            "*Asked to stop* and *has stopped* are different facts. `stop` may come from anybody, any number of "
            "times, and the first one counts. `stopped` is stated by the engine alone, `engine_lost` by its death. "
            "Only they, or an end that the engine reported before it saw the stop, end a job that was running: "
            "what it held is free before its terminal event is written. `give_up` is the one exception.",
            "## States",
            table(("state", "meaning"), [(code(s), t) for s, t in described(lifecycle.State).items()]),
            "## Triggers",
            table(("trigger", "meaning"), [(code(s), t) for s, t in described(lifecycle.Trigger).items()]),
            "## The table",
            table(("state", "trigger", "next state"), rows),
            "## What ends a job, and what its reader gets",
            table(
                ("how it ends", "last event"),
                [
                    ("its natural end, and nobody had asked to stop it", "`end`"),
                    ("anything, after a client, a lost reader or a shutdown asked", "`error` `CANCELLED`"),
                    ("anything, after its deadline asked", "`error` `INFERENCE_TIMEOUT`"),
                    ("it failed, and nobody had asked", "`error` with the failure's code"),
                    ("three engines died with it, and nobody had asked", "`error` `ENGINE_LOST`"),
                ],
            ),
            "For people, a record shows ended jobs as `completed`, `cancelled`, `timed_out` or `failed`.",
        ]
    )


# docs/reference.md


def reference_page() -> str:
    """Everything that has a name which a client or an operator may use."""
    worker = idle_worker()
    return "\n\n".join(
        [
            "# Reference",
            _MADE,
            "[Options](#options) · [Endpoints](#endpoints) · [Requests](#requests) · [Events](#events) · "
            "[Records and receipts](#records-and-receipts) · [Errors](#errors) · [Headers](#headers) · "
            "[Health](#health) · [Metrics](#metrics) · [Narration](#narration)",
            _options(),
            _endpoints(worker),
            _requests(),
            _events(),
            _records(),
            _errors(),
            _HEADERS,
            _health(),
            _metrics(worker),
            "## Narration",
            "One structured event for each thing that happens, on standard error: JSON lines when piped, coloured and "
            "readable on a terminal (`--log-format`). Never the prompt or the output, only their length and the "
            "prompt's SHA-256.",
            reference_markdown().rstrip(),
        ]
    )


_HEADERS = """## Headers

`X-Correlation-Id` (or `X-Request-Id`) is taken over when it is 1 to 128 visible ASCII characters; otherwise a new one
is made. It comes back on every answer, and stands in every narration event of that request, in the engine process too.
The answer to `POST /execute` also carries `X-Job-Id`.

A `traceparent` is continued: its trace id is the correlation id of a request that brings none, and the job's span, if
[traces](observability.md#traces) are on, is part of that trace."""


def _options() -> str:
    rows = [
        (code(o.flag), code(o.variable), o.requirement, o.default, o.description) for o in settings.options()
    ]
    return "\n\n".join(
        [
            "## Options",
            "Of `worker-orcd` and `worker-orcd serve`, which are the same. "
            "A flag beats its variable, a variable beats the default.",
            table(("flag", "variable", "type and bounds", "default", "meaning"), rows),
        ]
    )


def _endpoints(worker: Worker) -> str:
    app = create_app(worker, silent_narrator(), lambda _: None)
    rows = []
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            answers = ", ".join(sorted(operation["responses"]))
            rows.append((code(f"{method.upper()} {path}"), operation.get("summary", ""), answers))
    return "\n\n".join(
        [
            "## Endpoints",
            table(("request", "what it does", "answers"), rows),
            "`GET /openapi.json` describes them for programs, `GET /docs` for people; both work offline.",
        ]
    )


def _requests() -> str:
    parts = [
        "## Requests",
        "Bodies are read as JSON whatever `Content-Type` says. Types are not coerced, and unknown fields are refused "
        "by name.",
    ]
    for path, model in (("/execute", ExecuteRequest), ("/cancel", CancelRequest)):
        parts += [
            f"### `POST {path}`",
            table(("field", "type and bounds", "default", "meaning"), _fields(model)),
        ]
    parts.append(
        "Prompt and output together fit the context of one job, `context_length` in `GET /health`; `--max-tokens-out` "
        "and `--max-prompt-chars` may bound them further. On `/v1`, where clients send defaults, a `max_tokens` that "
        "does not fit is cut to what does."
    )
    parts.append(
        "The answer of `POST /cancel` is always `202` with " + code(json.dumps(_cancel_answer())) + "."
    )
    return "\n\n".join(parts)


def _cancel_answer() -> dict[str, str]:
    return CancelRequest(job_id="test-123").answer()


def _fields(model: type[Body]) -> list[tuple[str, ...]]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    rows: list[tuple[str, ...]] = []
    for name, field in sorted(schema["properties"].items(), key=lambda named: named[0] not in required):
        default = "required" if name in required else _default(field.get("default"))
        rows.append((code(name), _rule(field), default, field.get("description", "")))
    return rows


def _default(value: object) -> str:
    return "none" if value is None else code(json.dumps(value))


def _rule(field: dict[str, Any]) -> str:
    """What a JSON schema asks of a value, in words."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    kind = kinds[0]
    if "enum" in kind:
        return " or ".join(code(json.dumps(value)) for value in kind["enum"])
    match kind["type"]:
        case "array":
            if kind["items"]["type"] == "integer":
                return f"at most {kind['maxItems']} token ids"
            return f"at most {kind['maxItems']} texts of at most {kind['items']['maxLength']} characters"
        case "object":
            value, most = kind["additionalProperties"], kind.get("maxProperties")
            return f"an object of at most {most}: token id to {_rule(value)}" if most else "a JSON Schema"
        case "string":
            return "text" + _range(kind.get("minLength"), kind.get("maxLength"), " characters")
        case "integer" | "number":
            low, above = kind.get("minimum"), kind.get("exclusiveMinimum")
            what = "a whole number" if kind["type"] == "integer" else "a number"
            if above is not None:
                return f"{what} above {_number(above)} and at most {_number(kind['maximum'])}"
            return what + _range(low, kind.get("maximum"), "")
        case _:
            return "`true` or `false`"


def _range(low: float | None, high: float | None, unit: str) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f", {_number(low)}{unit} or more".replace("1 characters", "1 character")
    return f", {_number(low)} to {_number(high)}{unit}"


def _number(value: float | None) -> str:
    for power in (31, 64):
        if value == 2**power - 1:
            return f"2^{power} - 1"
    return str(int(value)) if value is not None and float(value).is_integer() else str(value)


def _events() -> str:
    rows = []
    for kind in (events.Started, events.Progress, events.Token, events.End, events.Error):
        fields = [f.name for f in dataclasses.fields(kind)]
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
            "of the worker. With one of another use as `Last-Event-ID` the answer is 404; a reader that has seen the "
            "terminal event gets 204, which ends an `EventSource`. A comment keeps an idle stream alive every "
            f"{sse.KEEP_ALIVE_SEC:.0f} s.",
            table(("event", "data", "meaning"), rows),
            "`stop_reason` is `stop` (the model ended it), `length` (`max_tokens` are out) or `stop_sequence`. "
            "`tokens_out` counts generated tokens; text that was held back until the end goes out in one more `token` "
            "event. Every `error` of a job also tells `phase` (`queued`, `loading`, `prefill`, `decode`), "
            "`prompt_tokens` (how many were processed) and `tokens_out`.",
            "With `logprobs` in the request, the `token` event of each token has `logprobs`: an object with `id`, "
            "`token`, `bytes` and `logprob`, and the likeliest tokens in `top_logprobs`.",
            "A cancelled job's stream:",
            fenced("text", _stream(cancelled_job())),
            "One that came to its natural end:",
            fenced("text", _stream(finished_job())),
            "The `reason` of a `CANCELLED` is one of:",
            table(("reason", "message"), reasons),
            "A `superseded` job was [replaced by a newer one](prefixes.md#the-newest-job-wins) with the same "
            "`supersedes`; its record names that one in `superseded_by`.",
        ]
    )


def _stream(job: Job) -> str:
    return sse.encode(list(enumerate(job.events)), job.incarnation).decode()


def _records() -> str:
    return "\n\n".join(
        [
            "## Records and receipts",
            '`GET /jobs/{job_id}` shows a job\'s record; `GET /jobs` shows all of them as `{"jobs": [...]}`. '
            "Ended jobs are kept for 5 minutes, at most 10,000 of them.",
            "The `receipt` of a job that was stopped says what the stop did and when, in milliseconds from the moment "
            "it was accepted: computing stopped, memory freed, terminal event written. `freed_ms` and "
            "`kv_cells_after` are null if not even the engine's death could be confirmed in time.",
            fenced("json", json.dumps(cancelled_job().record(), indent=2)),
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
            'One shape everywhere: `{"error": {"code", "message", "retriable", "param"?}}`; in a stream it is the '
            "`error` event's data.",
            table(("code", "HTTP", "retriable", "at fault", "when"), rows),
        ]
    )


def _health() -> str:
    names = ", ".join(code(field.name) for field in dataclasses.fields(Health))
    return (
        "## Health\n\n"
        f"`GET /health` answers 200 when `status` is `healthy`, 503 when it is `loading`, `draining` or `unhealthy`. "
        f"Fields: {names}. What only a loaded engine can tell is null without one. `kv_cells_used` counts live jobs; "
        "`kv_cells_cached` those kept for later jobs, and `prefix_store_bytes` is the host memory that holds more of "
        "them ([prefixes](prefixes.md)). With keys, only an operator's key sees "
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
            "`GET /metrics`, for Prometheus; with keys, it needs an operator's. "
            "[How to use them](observability.md#metrics).",
            table(("name", "type", "labels", "meaning"), rows),
        ]
    )


# Sequences of facts for the core, and a worker that never starts its engine.

_REQUEST = ExecuteRequest.of(
    job_id="test-123", prompt="Write a long story...", max_tokens=1000, temperature=0.7, seed=42
)
_ACCEPTED_UNIX = 1_767_225_600.0


def cancelled_job() -> Job:
    """A job that a client cancels after its second token."""
    dispatcher, job = _running_job()
    asked = StopRequest(StopReason.CLIENT, 0.2, "cancel-7f3a")
    dispatcher.stop(job, asked, _at(0.2))
    dispatcher.stopped(job.run, Release(0.2035, 0.2036, 37, 0, 36), _at(0.2042))
    return job


def finished_job() -> Job:
    """A job that the model ends after its second token."""
    dispatcher, job = _running_job()
    dispatcher.finished(job.run, "stop", Release(0.2, 0.2, 37, 0), _at(0.2))
    return job


def _running_job() -> tuple[Dispatcher, Job]:
    dispatcher = Dispatcher(Ceilings(), max_queue=512, epoch="5f3a9c21d4")
    dispatcher.engine_ready(
        ReadyEngine(Capacity(16384, 8192, 16), "Smollm2 135M 8k Lc100K Mix1 Ep2"), _at(0.0)
    )
    (job,) = dispatcher.submit([_REQUEST], "execute-51c9", _at(0.0)).jobs
    dispatcher.prepared(job.run, tuple(range(36)), _at(0.001))
    dispatcher.progress(job.run, 36)
    dispatcher.token(job.run, 1000, "Once", _at(0.15))
    dispatcher.token(job.run, 1001, " upon", _at(0.16))
    return dispatcher, job


def _at(sec: float) -> Timestamp:
    return Timestamp(sec, _ACCEPTED_UNIX + sec)


def silent_narrator() -> narration.Narrator:
    """A narrator without listeners."""
    return narration.Narrator.configure("docs", log_format="json", stream=io.StringIO())


def idle_worker() -> Worker:
    """A worker whose engine is never started."""

    async def launch(_: EngineListener) -> Engine:
        raise NotImplementedError

    return Worker(Policy(), launch, silent_narrator(), worker_id="docs", model_path="model.gguf")


# The program.

PAGES: dict[str, Callable[[], str]] = {"lifecycle.md": lifecycle_page, "reference.md": reference_page}


def stale() -> list[Path]:
    """Pages that differ from what the code says now."""
    return [
        path
        for name, page in PAGES.items()
        if not (path := DOCS / name).exists() or path.read_text(encoding="utf-8") != page() + "\n"
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is not current, or only say so. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    check = parser.parse_args(arguments).check
    pages = stale()
    for path in pages:
        name = path.relative_to(DOCS.parent)
        if check:
            print(f"{name} is not current: run `make docs`", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(PAGES[path.name]() + "\n", encoding="utf-8")
            print(f"wrote {name}")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
