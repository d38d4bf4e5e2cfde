"""What routers and workers of a fleet send each other, beside updates of jobs (`jobs/replication.py`).

Plain values of our own: an exception of a worker or an engine never crosses between processes, where the other side
might not be able to read it.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.replication import JobUpdate
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.protocol.messages import Ready
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.worker.health import Health
from worker_orcd.worker.model_names import ModelNames

CLOCKS_SEC = 0.25
"""By how much the clocks of a fleet's machines may differ without a cancel missing a job."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A `JobError` as a value."""

    code: str
    message: str
    param: str | None
    http_status: int
    retry_after_sec: int | None
    details: dict[str, object]
    openai_code: str | None

    @classmethod
    def of(cls, error: JobError) -> Self:
        """The value of an error."""
        return cls(
            error.code.value,
            error.message,
            error.param,
            error.http_status,
            error.retry_after_sec,
            error.details,
            error.openai_code,
        )

    def error(self) -> JobError:
        """The error again."""
        return JobError(
            ErrorCode(self.code),
            self.message,
            param=self.param,
            http_status=self.http_status,
            retry_after_sec=self.retry_after_sec,
            details=self.details,
            openai_code=self.openai_code,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The latest use of a job id at one worker, the router that serves it, in which term, and how long ago it was
    accepted."""

    incarnation: str
    live: bool
    accepted_unix: float
    served_by: str
    term: int
    age_sec: float = 0.0


@dataclass(frozen=True, slots=True)
class Followed:
    """A job that a router follows from now on: its request, all that the router does not have yet, the router that
    serves the job (empty: none), and how many did before."""

    request: JobRequest
    update: JobUpdate
    served_by: str
    term: int


@dataclass(frozen=True, slots=True)
class StopNote:
    """For all routers: a client has cancelled this use of a job id. The router that serves the job sees to it."""

    key: JobKey
    incarnation: str
    correlation_id: str


@dataclass(frozen=True, slots=True)
class SharedStop:
    """For all workers, and as a note for all routers: stop the live jobs of one owner that share a name.

    Attributes:
        owner: the jobs' owner.
        attribute: the attribute of their requests that has the name.
        name: the name.
        reason: why they are stopped.
        correlation_id: that of the cancel, or of the job that takes their place.
        accepted_unix: when the cancel or that job was accepted. Jobs that are younger are not stopped.
        age_sec: how long ago that was when this was sent.
        superseded_by: the id of the job that takes their place.
    """

    owner: str
    attribute: Literal["group", "part_of", "supersedes"]
    name: str
    reason: StopReason
    correlation_id: str
    accepted_unix: float
    age_sec: float = 0.0
    superseded_by: str | None = None

    def is_for(self, job: Job, now: Timestamp) -> bool:
        """Whether a job is to be stopped."""
        if job.owner != self.owner or getattr(job.request, self.attribute) != self.name:
            return False
        if self.superseded_by is not None:
            return job.precedence < (self.accepted_unix, self.correlation_id)
        return self.covers(job.accepted, now)

    def covers(self, accepted: Timestamp, now: Timestamp) -> bool:
        """Whether a cancel is for a job that was accepted then: older by Unix time, or here before the cancel, unless
        its message was long under way."""
        younger_sec = accepted.unix - self.accepted_unix
        under_way_sec = now.unix - self.age_sec - self.accepted_unix
        was_here = accepted.mono <= now.mono - self.age_sec
        return younger_sec <= 0 or (was_here and under_way_sec <= CLOCKS_SEC)

    def after(self, sec: float) -> Self:
        """The same, sent so much later."""
        return replace(self, age_sec=self.age_sec + sec)


@dataclass(frozen=True, slots=True)
class DropNote:
    """For all routers: a client has deleted this ended job. Its events are kept no longer."""

    key: JobKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class ServeNote:
    """For one router: it serves this job from now on, as the router that did is dead, or has nobody who reads."""

    key: JobKey
    incarnation: str
    term: int


Note = StopNote | SharedStop | DropNote | ServeNote


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a router knows of a worker, as of its last answer."""

    health: Health
    engine: Ready | None
    tool_formats: tuple[ToolFormat, ...]
    model_names: ModelNames
    recommended_sampling: dict[str, float]
    permanently_failed: bool

    @property
    def jobs(self) -> int:
        """Jobs that run or wait there."""
        return (self.health.jobs_running or 0) + (self.health.jobs_queued or 0)

    @property
    def slots(self) -> int:
        """Jobs that can run there together."""
        return self.engine.sequences if self.engine else 1

    @property
    def has_free_slot(self) -> bool:
        """Whether a job that comes now does not wait behind others."""
        return self.engine is not None and self.jobs < self.slots

    @property
    def takes_jobs(self) -> bool:
        """Whether it accepts jobs: also while it loads, where they wait."""
        return not self.permanently_failed and self.health.status != "draining"


@dataclass(frozen=True, slots=True)
class News:
    """A worker's answer to a router's poll: what happened since the last one.

    Attributes:
        updates: of the jobs that the router follows.
        notes: for the router.
        events: log events of the worker, and whose they are.
        state: the worker's, if some time has passed since it was sent last.
        warm: blocks of prompts that other routers sent to the worker (`routing.chain_of`).
        number: of this answer. A poll names the last one that came: if an answer is lost, the next poll gets it again.
        others: which of the updates are of jobs that another router serves, or none (their incarnations).
        granted: how many uses of ids the worker has granted as their keeper.
    """

    updates: tuple[JobUpdate, ...] = ()
    notes: tuple[Note, ...] = ()
    events: tuple[tuple[dict[str, Any], str | None], ...] = ()
    state: WorkerState | None = None
    warm: tuple[bytes, ...] = ()
    others: frozenset[str] = frozenset()
    number: int = 0
    granted: int = 0
