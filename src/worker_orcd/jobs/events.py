"""The events of a job's stream: `started progress* token* (end|error)` or just `error`.

An event's number (`Position.number`, in the SSE `id:`) is its index in the job's list of events.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, Literal, overload

import msgspec

from worker_orcd.jobs.errors import KINDS, ErrorCode
from worker_orcd.sampling import Logprobs, logprobs_data

StopReason = Literal["stop", "length", "stop_sequence"]


@dataclass(frozen=True, slots=True)
class Started:
    """The job was handed to the engine. `started_at` is RFC 3339 in UTC; `seed` is the one in use."""

    name: ClassVar[str] = "started"
    job_id: str
    model: str
    started_at: str
    seed: int

    def data(self) -> dict[str, object]:
        """The event's JSON object."""
        return {"job_id": self.job_id, "model": self.model, "started_at": self.started_at, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Progress:
    """Number of computed prompt tokens; `cached` of them were reused. Only in jobs that request it.

    Attributes:
        time_ms: time since the job's start, for APIs that report it.
    """

    name: ClassVar[str] = "progress"
    prompt_tokens: int
    processed: int
    cached: int
    time_ms: float

    def data(self) -> dict[str, object]:
        """The event's JSON object."""
        return {"prompt_tokens": self.prompt_tokens, "processed": self.processed, "cached": self.cached}


class Token(msgspec.Struct, frozen=True, gc=False):
    """Token number `i` of the job (0, 1, 2 …) and the text that became final with it, possibly empty."""

    name: ClassVar[str] = "token"
    t: str
    i: int
    logprobs: Logprobs = ()
    """Log probabilities of the token and of the most likely tokens, if requested; none for text that was held back."""

    def data(self) -> dict[str, object]:
        """The event's JSON object."""
        data: dict[str, object] = {"t": self.t, "i": self.i}
        if self.logprobs:
            data["logprobs"] = logprobs_data(self.logprobs)
        return data


@dataclass(frozen=True, slots=True)
class End:
    """The job reached its natural end. `decode_time_ms` is the time from the first token to the last."""

    name: ClassVar[str] = "end"
    tokens_out: int
    decode_time_ms: int
    stop_reason: StopReason

    def data(self) -> dict[str, object]:
        """The event's JSON object."""
        return {
            "tokens_out": self.tokens_out,
            "decode_time_ms": self.decode_time_ms,
            "stop_reason": self.stop_reason,
        }


@dataclass(frozen=True, slots=True)
class Error:
    """The job was stopped or failed. The JSON object has `code`, `message`, `retriable` and the fields in `details`."""

    name: ClassVar[str] = "error"
    code: ErrorCode
    message: str
    details: dict[str, object] = field(default_factory=dict)
    openai_code: str | None = None
    """The code that OpenAI's clients expect, if it is not `code`."""

    def data(self) -> dict[str, object]:
        """The event's JSON object."""
        retriable = KINDS[self.code].retriable
        return {"code": self.code.value, "message": self.message, "retriable": retriable, **self.details}


Terminal = End | Error
Event = Started | Progress | Token | End | Error

LOGPROB_BYTES = 200
"""Bytes of a `TokenLogprob` in memory."""
_PROGRESS_BYTES = 256
"""Bytes of a `Progress` in memory, with its numbers."""


def outcome_of(terminal: Terminal) -> str:
    """The outcome of a job in its record."""
    match terminal:
        case End():
            return "completed"
        case Error(code=ErrorCode.CANCELLED):
            return "cancelled"
        case Error(code=ErrorCode.INFERENCE_TIMEOUT):
            return "timed_out"
        case Error():
            return "failed"


class EndedEvents(Sequence[Event]):
    """The events of an ended job in a tenth of their memory: all text as one string, and where each token's text ends.

    Reads like the original list: `started progress* token* (end|error)` or just `error`.
    """

    __slots__ = ("_before", "_ends", "_last", "_logprobs", "_text")

    def __init__(self, events: Sequence[Event]) -> None:
        said = [event for event in events if isinstance(event, Token)]
        tokens = [event.t.encode() for event in said]
        self._logprobs = [event.logprobs for event in said] if any(event.logprobs for event in said) else []
        self._before = tuple(events[: len(events) - len(tokens) - 1])
        """`started` and `progress` events."""
        self._text = b"".join(tokens)
        self._ends = array("I", accumulate(map(len, tokens)))
        self._last = events[-1]

    def __len__(self) -> int:
        return len(self._before) + len(self._ends) + 1

    @overload
    def __getitem__(self, place: int) -> Event: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Event]: ...
    def __getitem__(self, place: int | slice) -> Event | Sequence[Event]:
        places = range(len(self))[place]
        return self._at(places) if isinstance(places, int) else [self._at(one) for one in places]

    def _at(self, place: int) -> Event:
        if place == len(self) - 1:
            return self._last
        number = place - len(self._before)
        if number < 0:
            return self._before[place]
        begin = self._ends[number - 1] if number else 0
        text = self._text[begin : self._ends[number]].decode()
        return Token(text, number, self._logprobs[number] if self._logprobs else ())

    @property
    def size(self) -> int:
        """Number of bytes that depend on the job's output."""
        progress = _PROGRESS_BYTES * max(0, len(self._before) - 1)
        logprobs = LOGPROB_BYTES * sum(map(len, self._logprobs))
        return len(self._text) + self._ends.itemsize * len(self._ends) + progress + logprobs
