"""Typed values of a worker's responses."""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

DEFAULT_URL = "http://127.0.0.1:8080"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's status code and JSON."""

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
        number: its index in the stream: 0, 1, 2 …
        name: `started`, `progress`, `token`, `end` or `error`.
        data: its JSON object.
        incarnation: identifies the use of the job id; None if the stream does not contain it (OpenAI's chunks).
    """

    number: int
    name: str
    data: Json
    incarnation: str | None = None

    @property
    def id(self) -> str | None:
        """The position for resuming (`Last-Event-ID`, `follow(after=…)`), if the stream has positions."""
        return None if self.incarnation is None else f"{self.incarnation}.{self.number}"

    @property
    def terminal(self) -> bool:
        """Whether it is the terminal event."""
        return self.name in ("end", "error")


@dataclass(frozen=True, slots=True)
class Token:
    """Token number `index` of a job (0, 1, 2 …) and the text that became final with it, possibly empty."""

    index: int
    text: str
    logprobs: Json | None = None
    """Log probabilities of the token and of the most likely tokens, if requested (`logprobs=N`)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Number of computed prompt tokens; `cached` of them were reused."""

    prompt_tokens: int
    processed: int
    cached: int


@dataclass(frozen=True, slots=True)
class Ending:
    """A job's natural end. `decode_time_ms` is the time from the first token to the last."""

    tokens_out: int
    decode_time_ms: int
    stop_reason: Literal["stop", "length", "stop_sequence"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of a stop, in milliseconds from its acceptance. `freed_ms` and `kv_cells_after` are None if not even
    the engine's death was confirmed. `prompt_tokens_cached` prompt tokens were taken from the prefix cache, and
    `kv_cells_warm` cells stay there for later jobs. `job_id` is the stopped job."""

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
        """From a record's `receipt`. Fields that a newer worker adds are ignored."""
        known: dict[str, Any] = {field.name: data.get(field.name) for field in fields(cls)}
        return cls(**known | {"job_id": job_id})

    @classmethod
    def of_record(cls, record: Json) -> Self | None:
        """The receipt in a job's record, if the job was stopped."""
        return None if record["receipt"] is None else cls.of(record["receipt"], record["job_id"])
