"""The shapes of a worker's responses on which the client relies. `checked` refuses all others.

A worker is another program: it may have another version, be hostile, or not be a worker at all. Fields that are not in
a shape are ignored, so a newer worker may have more fields. The client library does not depend on the worker's
packages, so shapes are plain values:

    str, int, float, bool, dict    a JSON value of this type; any number is a float
    {"name": shape}                an object with these fields
    [shape]                        an array of such values
    OrNull(shape)                  this shape, or null
    Optional(shape)                a field that may be missing
"""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
MAX_NUMBER = 1e15
"""Numbers up to this one can be shown with decimals."""


@dataclass(frozen=True, slots=True)
class OrNull:
    """The shape, or null."""

    shape: Any


@dataclass(frozen=True, slots=True)
class Optional:
    """A field that may be missing."""

    shape: Any


def maybe(shape: Any) -> Optional:
    """A field that may be missing or null."""
    return Optional(OrNull(shape))


HEALTH = {
    "status": str,
    "model": OrNull(str),
    "device": OrNull(str),
    "kv_cells_total": int,
    "engine_pid": OrNull(int),
    "engine_restarts": int,
    "kv_cells_used": maybe(int),
    "kv_cells_cached": maybe(int),
    "prefix_store_bytes": maybe(int),
    "jobs_running": maybe(int),
    "jobs_queued": maybe(int),
    "reason": maybe(str),
}
"""The body of `GET /health`."""

RECEIPT = {
    "reason": str,
    "phase": str,
    "stopped_ms": float,
    "freed_ms": maybe(float),
    "terminal_ms": float,
    "prompt_tokens": int,
    "prompt_tokens_cached": maybe(int),
    "tokens_out": int,
    "kv_cells_before": int,
    "kv_cells_after": maybe(int),
    "kv_cells_warm": maybe(int),
    "cancel_correlation_id": maybe(str),
}
"""A receipt."""

RECORD = {
    "job_id": str,
    "incarnation": str,
    "state": str,
    "phase": str,
    "accepted_at": str,
    "ended_ms": OrNull(float),
    "group": OrNull(str),
    "prompt_tokens": OrNull(int),
    "prompt_tokens_processed": int,
    "tokens_out": int,
    "receipt": OrNull(RECEIPT),
}
"""A job's record."""

RECORDS = {"jobs": [RECORD]}
"""The body of `GET /jobs`."""

CANCELLED = {
    "job_id": maybe(str),
    "receipt": maybe(RECEIPT),
    "jobs": maybe([{"job_id": str, "receipt": RECEIPT}]),
}
"""The body of a response to `POST /cancel`: a job's receipt, those of a group, or none."""

MODELS = {"data": [{"recommended_sampling": maybe(dict)}]}
"""The body of `GET /v1/models`."""

ERROR = {
    "code": str,
    "message": str,
    "retriable": bool,
    "param": maybe(str),
    "reason": maybe(str),
    "phase": maybe(str),
}
"""An error, in a refusal or as a stream's last event."""

REFUSAL = {"error": ERROR}
"""The body of a refusal."""

EVENT_DATA: dict[str, Any] = {
    "progress": {"prompt_tokens": int, "processed": int, "cached": int},
    "token": {"t": str, "i": int},
    "end": {"tokens_out": int, "decode_time_ms": float, "stop_reason": str},
    "error": ERROR,
}
"""The data of a job's events, by name. The data of other events may be any JSON object."""

CHUNK = {
    "choices": maybe([{"delta": {"role": maybe(str), "content": maybe(str)}, "finish_reason": maybe(str)}]),
    "model": maybe(str),
    "usage": maybe({"completion_tokens": int}),
    "prompt_progress": maybe({"total": int, "processed": int, "cache": int}),
    "error": maybe(ERROR),
}
"""One of OpenAI's chunks, or the error that ends a stream of them."""

LOG_EVENT = {
    **dict.fromkeys(("time", "level", "process", "action", "human"), Optional(str)),
    "job_id": maybe(str),
    "traceback": maybe(str),
}
"""A log event of `GET /narration`."""


def checked(value: T, shape: Any, where: str = "the response") -> T:
    """Return a worker's JSON unchanged, if it has this shape.

    Raises:
        ValueError: the JSON has another shape. The message says where.
    """
    match shape:
        case OrNull():
            if value is not None:
                checked(value, shape.shape, where)
        case Optional():
            checked(value, shape.shape, where)
        case dict():
            _check_fields(value, shape, where)
        case [item]:
            for place, one in enumerate(_of_type(value, list, where)):
                checked(one, item, f"{where}[{place}]")
        case _:
            _of_type(value, shape, where)
    return value


def decoded(text: str, shape: Any) -> Any:
    """Parse JSON text and check its shape; None: any shape.

    Raises:
        ValueError: the text is not JSON, or has another shape.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    return value if shape is None else checked(value, shape)


def _check_fields(value: object, shape: dict[str, Any], where: str) -> None:
    fields = _of_type(value, dict, where)
    for name, inner in shape.items():
        if name in fields:
            checked(fields[name], inner, f"{where}.{name}")
        elif not isinstance(inner, Optional):
            raise ValueError(f"{where} has no {name}")


def _of_type(value: object, expected: type, where: str) -> Any:
    number = expected in (int, float)
    fits = isinstance(value, (int, float) if expected is float else expected)
    if number and (isinstance(value, bool) or (fits and not -MAX_NUMBER <= value <= MAX_NUMBER)):  # type: ignore[operator]
        fits = False
    if not fits:
        raise ValueError(f"{where} is not {expected.__name__} but {type(value).__name__}")
    return value
