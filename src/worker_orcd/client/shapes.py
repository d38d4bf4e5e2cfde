"""What a client relies on in a worker's answers. `checked` lets nothing through that has another shape.

A worker is another program: of another version, hostile, or no worker at all. Fields that no shape names are not looked
at, so a newer worker may have more of them.
"""

import json
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")
Object = dict[str, Any]
"""Any JSON object."""
Ms = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]
"""Milliseconds, of which every float can be shown."""


class Health(msgspec.Struct):
    """The body of `GET /health`."""

    status: str
    model: str | None
    device: str | None
    kv_cells_total: int
    engine_pid: int | None
    engine_restarts: int
    kv_cells_used: int | None = None
    kv_cells_cached: int | None = None
    jobs_running: int | None = None
    jobs_queued: int | None = None
    reason: str | None = None


class Receipt(msgspec.Struct):
    """What a stop did."""

    reason: str
    phase: str
    stopped_ms: Ms
    terminal_ms: Ms
    prompt_tokens: int
    tokens_out: int
    kv_cells_before: int
    freed_ms: Ms | None = None
    kv_cells_after: int | None = None
    cancel_correlation_id: str | None = None
    prompt_tokens_cached: int | None = None
    kv_cells_warm: int | None = None


class Record(msgspec.Struct):
    """A job's record."""

    job_id: str
    incarnation: str
    state: str
    phase: str
    accepted_at: str
    ended_ms: Ms | None
    group: str | None
    prompt_tokens: int | None
    prompt_tokens_processed: int
    tokens_out: int
    receipt: Receipt | None


class Records(msgspec.Struct):
    """The body of `GET /jobs`."""

    jobs: list[Record]


class CancelledJob(msgspec.Struct):
    """A job that a cancel stopped."""

    job_id: str
    receipt: Receipt


class Cancelled(msgspec.Struct):
    """The body of an answer to `POST /cancel`: one job's receipt, those of a group, or none."""

    job_id: str | None = None
    receipt: Receipt | msgspec.UnsetType = msgspec.UNSET
    jobs: list[CancelledJob] | msgspec.UnsetType = msgspec.UNSET


class Model(msgspec.Struct):
    """An entry of `GET /v1/models`."""

    recommended_sampling: Object | None = None


class Models(msgspec.Struct):
    """The body of `GET /v1/models`."""

    data: list[Model]


class Fault(msgspec.Struct):
    """An error, in a refusal or as a stream's last event."""

    code: str
    message: str
    retriable: bool
    param: str | None = None
    reason: str | None = None
    phase: str | None = None


class Refusal(msgspec.Struct):
    """The body of a refusal."""

    error: Fault


class TokenData(msgspec.Struct):
    """A `token` event."""

    t: str
    i: int


class EndData(msgspec.Struct):
    """An `end` event."""

    tokens_out: int
    decode_time_ms: Ms
    stop_reason: str


class Usage(msgspec.Struct):
    """What one of OpenAI's chunks says of tokens."""

    completion_tokens: int


class Delta(msgspec.Struct):
    """What a choice has more than before."""

    role: str | None = None
    content: str | None = None


class Choice(msgspec.Struct):
    """One choice of a chunk."""

    delta: Delta
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """One of OpenAI's chunks, or the error that ends a stream of them."""

    choices: list[Choice] = []
    model: str | None = None
    usage: Usage | None = None
    error: Fault | msgspec.UnsetType = msgspec.UNSET


class LogEvent(msgspec.Struct):
    """A log event of `GET /narration`."""

    time: str = ""
    level: str = ""
    process: str = ""
    action: str = ""
    human: str = ""
    job_id: str | None = None
    traceback: str | None = None


EVENT_DATA: dict[str, Any] = {"token": TokenData, "end": EndData, "error": Fault}
"""The data of a job's events, by name. That of all others is any JSON object."""


def checked(value: T, shape: Any) -> T:
    """A worker's JSON as it came, if it has this shape.

    Raises:
        ValueError: it has another one. The message says where.
    """
    msgspec.convert(value, shape)
    return value


def decoded(text: str, shape: Any) -> Any:
    """The same of JSON that is still text.

    Raises:
        ValueError: it is no JSON, or has another shape.
    """
    try:
        return checked(json.loads(text), shape)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
