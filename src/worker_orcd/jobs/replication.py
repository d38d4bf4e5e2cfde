"""Copies of a job in other processes: what changed since an earlier look, and a copy that follows it.

In a fleet the router that serves a job's readers holds such a copy. It shows what happens to the job in its worker, and
it is all that another worker needs to continue the job when that one dies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.events import Event
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.stop_request import StopRequest
from worker_orcd.sampling import Logprobs

T = TypeVar("T")

_VALUES = (
    *("state", "phase", "seed", "timeout_sec", "correlation_id", "prompt_length", "deaths", "requeues"),
    *("max_tokens", "prompt_processed", "prompt_cached", "tokens_out", "held", "receipt", "embedding"),
)
_TIMES = ("started_at", "progress_at", "first_token_at", "last_token_at", "ended_at")
"""Fields on the front's monotonic clock, which no other process shares: sent as seconds since the job's acceptance."""


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """What is new of a job. Its lists continue a copy's from `first_event`, `first_token` and `first_logprobs` on.

    Attributes:
        incarnation: which use of which job id.
        age_sec: time since its acceptance, when this was sent.
        accepted_unix: when it was accepted, Unix time.
        values: the fields of `_VALUES`, in this order.
        times: the fields of `_TIMES`, as seconds since its acceptance.
        stop: its stop request, whose time is in seconds since its acceptance.
        prompt_tokens: the prompt's token ids; None if they are unknown or not new.
    """

    incarnation: str
    age_sec: float
    accepted_unix: float
    values: tuple[Any, ...]
    times: tuple[float | None, ...]
    stop: StopRequest | None
    first_event: int = 0
    events: tuple[Event, ...] = ()
    first_token: int = 0
    tokens: tuple[int, ...] = ()
    first_logprobs: int = 0
    prompt_logprobs: tuple[Logprobs, ...] = ()
    prompt_tokens: tuple[int, ...] | None = None


@dataclass(slots=True)
class Cursor:
    """How much of a job a copy has been sent."""

    events: int = 0
    tokens: int = 0
    logprobs: int = 0
    prompt: bool = False

    def advance(self, job: Job, now: Timestamp) -> JobUpdate:
        """What is new since the last call."""
        zero = job.accepted.mono
        stop = None if job.stop is None else replace(job.stop, accepted_at=job.stop.accepted_at - zero)
        update = JobUpdate(
            incarnation=job.incarnation,
            age_sec=now.mono - zero,
            accepted_unix=job.accepted.unix,
            values=tuple(getattr(job, name) for name in _VALUES),
            times=tuple(None if (at := getattr(job, name)) is None else at - zero for name in _TIMES),
            stop=stop,
            first_event=self.events,
            events=tuple(job.events[self.events :]),
            first_token=self.tokens,
            tokens=tuple(job.tokens[self.tokens :]),
            first_logprobs=self.logprobs,
            prompt_logprobs=tuple(job.prompt_logprobs[self.logprobs :]),
            prompt_tokens=None if self.prompt else job.prompt_tokens,
        )
        self.events = len(job.events)
        self.tokens = max(self.tokens, len(job.tokens))
        self.logprobs = len(job.prompt_logprobs)
        self.prompt = self.prompt or job.prompt_tokens is not None
        return update


def whole(job: Job, now: Timestamp) -> JobUpdate:
    """All of a job."""
    return Cursor().advance(job, now)


def apply(update: JobUpdate, job: Job, now: Timestamp) -> None:
    """Bring a copy up to date. What the copy has already is not added again; a gap cannot be closed.

    Raises:
        ValueError: events or tokens are missing between what the copy has and the update.
    """
    missing = max(update.first_event - len(job.events), update.first_token - len(job.tokens))
    if missing > 0:
        raise ValueError(f"{missing} events or tokens are missing")
    if job.incarnation != update.incarnation:
        job.incarnation = update.incarnation
        job.accepted = Timestamp(now.mono - update.age_sec, update.accepted_unix)
    zero = job.accepted.mono
    stop = update.stop
    for name, value in zip(_VALUES, update.values, strict=True):
        setattr(job, name, value)
    for name, since in zip(_TIMES, update.times, strict=True):
        setattr(job, name, None if since is None else zero + since)
    job.stop = None if stop is None else replace(stop, accepted_at=zero + stop.accepted_at)
    job.add_copied_events(_unknown(update.events, len(job.events) - update.first_event))
    job.tokens += _unknown(update.tokens, len(job.tokens) - update.first_token)
    job.prompt_logprobs += _unknown(update.prompt_logprobs, len(job.prompt_logprobs) - update.first_logprobs)
    if update.prompt_tokens is not None:
        job.prompt_tokens = update.prompt_tokens


def restore(update: JobUpdate, job: Job, now: Timestamp) -> None:
    """Make a job that was just accepted continue another worker's: it waits with all that the other had computed.

    Its time limit goes on from its first acceptance.
    """
    job.incarnation = ""
    phase = job.phase
    apply(update, job, now)
    job.state, job.phase, job.stop = State.QUEUED, phase, None
    job.waits_since = job.accepted.mono


def _unknown(sent: Sequence[T], known: int) -> Sequence[T]:
    return sent[known:]
