"""Typed values of a worker's answers."""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

DEFAULT_URL = "http://127.0.0.1:8080"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A status code and the JSON that came with it."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class NarrationEvent:
    """One log event of a worker. `id` is the position to resume after; `data` is the event as in the log."""

    id: str
    data: Json


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job's stream.

    Attributes:
        number: its place in the stream: 0, 1, 2 …
        name: `started`, `progress`, `token`, `end` or `error`.
        data: its JSON object.
        incarnation: names the use of the job id; None where the stream does not say (OpenAI's chunks).
    """

    number: int
    name: str
    data: Json
    incarnation: str | None = None

    @property
    def id(self) -> str | None:
        """The position to come back with (`Last-Event-ID`, `follow(after=…)`), if the stream has such."""
        return None if self.incarnation is None else f"{self.incarnation}.{self.number}"

    @property
    def terminal(self) -> bool:
        """Whether it is the last one."""
        return self.name in ("end", "error")


@dataclass(frozen=True, slots=True)
class Token:
    """Token number `index` of a job (0, 1, 2 …) and the text that became certain with it, possibly none."""

    index: int
    text: str
    logprobs: Json | None = None
    """Its log probability and those of the likeliest tokens, if the job was asked for them (`logprobs=N`)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many of the prompt's tokens are computed; `cached` of them the worker had computed before."""

    prompt_tokens: int
    processed: int
    cached: int


@dataclass(frozen=True, slots=True)
class Ending:
    """A job's natural end. `decode_time_ms` runs from the first token to the last."""

    tokens_out: int
    decode_time_ms: int
    stop_reason: Literal["stop", "length", "stop_sequence"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a stop did. Milliseconds from its acceptance; `freed_ms` and `kv_cells_after` are None if not even the
    engine's death could be confirmed. `prompt_tokens_cached` of the prompt tokens were taken from the prefix cache, and
    `kv_cells_warm` cells stay there for later jobs. `job_id` says whose it is."""

    reason: str
    phase: str
    stopped_ms: float
    freed_ms: float | None
    terminal_ms: float
    prompt_tokens: int
    tokens_out: int
    kv_cells_before: int
    kv_cells_after: int | None
    cancel_correlation_id: str | None
    job_id: str = ""
    prompt_tokens_cached: int | None = None
    kv_cells_warm: int | None = None

    @classmethod
    def of(cls, data: Json, job_id: str) -> Self:
        """Out of a record's `receipt`; what a newer worker adds is left out."""
        known: dict[str, Any] = {field.name: data.get(field.name) for field in fields(cls)}
        return cls(**known | {"job_id": job_id})

    @classmethod
    def of_record(cls, record: Json) -> Self | None:
        """A job's receipt, if it was stopped."""
        return None if record["receipt"] is None else cls.of(record["receipt"], record["job_id"])
