"""Copies of jobs at a router: what its readers read, and all that another worker needs to go on with them."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.replication import JobUpdate, apply
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopRequest
from worker_orcd.jobs.tracker import JobTracker
from worker_orcd.worker.metrics import Metrics
from worker_orcd.worker.now import now
from worker_orcd.worker.streams import JobStream, JobStreams


@dataclass(eq=False, slots=True)
class Mirror:
    """The copy of one live job.

    Attributes:
        job: the copy.
        serves: whether this router has the client whose request the job is, or took the place of the router that had
            it: then it sees to the job's going on.
        inherited: whether it took that router's place. Then the job's client reads as a follower.
        served_by: the router that serves it, as far as is known.
        term: how many routers served it before that one.
        worker: the worker that has the job; None while no worker has it.
        placing: whether no worker has accepted it yet.
        stop: a stop request that was made here, or that a worker's note reports.
        left: whether the client has left.
        unread_since: when the last follower left, monotonic seconds.
        attempts: how many times this router has tried to hand the job to a worker.
        withdrawn: workers that may have the job although this router does not want it there any more.
        early: updates that came before the answer to the request.
        overdue: the timer of the stop.
        time_limit: the timer of the job's time limit.
        granted: whether a keeper has granted the id to it.
        use: how many uses of the id came before, as far as its keepers know.
        sent: how many claims were made for it here.
        overtaken: the cancel that overtook the job, if this is the first use of its id.
        claimed_at: when it was claimed last, monotonic seconds.
    """

    job: Job
    serves: bool
    inherited: bool = False
    served_by: str = ""
    term: int = 0
    worker: str | None = None
    placing: bool = False
    stop: StopRequest | None = None
    left: bool = False
    unread_since: float = 0.0
    attempts: int = 0
    withdrawn: set[str] = field(default_factory=set)
    early: list[tuple[str, JobUpdate]] = field(default_factory=list)
    overdue: asyncio.TimerHandle | None = None
    time_limit: asyncio.TimerHandle | None = None
    granted: bool = False
    use: int = 0
    sent: int = 0
    overtaken: StopRequest | None = None
    claimed_at: float = 0.0

    def not_at(self, worker: str, _: object) -> None:
        """A worker has confirmed that it does not have the job."""
        self.withdrawn.discard(worker)


class Mirrors:
    """All copies at one router: of live jobs, and of those that ended lately."""

    def __init__(self, metrics: Metrics) -> None:
        self.tracker = JobTracker()
        """Jobs that have ended."""
        self.streams = JobStreams()
        self._metrics = metrics
        self._live: dict[str, Mirror] = {}
        self._latest: dict[JobKey, Mirror] = {}
        """Of each id. The end of an earlier use may not have been reported yet."""
        self._runs = count(1)

    def __iter__(self) -> Iterator[Mirror]:
        return iter(tuple(self._live.values()))

    def is_read(self, mirror: Mirror) -> bool:
        """Whether a client reads the job at this router."""
        return self.streams.of(mirror.job).readers > 0

    def run(self) -> int:
        """A number for a copy, as streams and records need one."""
        return next(self._runs)

    def add(self, mirror: Mirror) -> JobStream:
        """Keep a copy up to date from now on."""
        self._live[mirror.job.incarnation] = self._latest[mirror.job.key] = mirror
        self.streams.accepted(mirror.job, {})
        return self.streams.of(mirror.job)

    def drop(self, mirror: Mirror) -> None:
        """The job was not accepted."""
        if self._remove(mirror):
            self.streams.ended(mirror.job)

    def get(self, incarnation: str) -> Mirror | None:
        """The copy of a live job."""
        return self._live.get(incarnation)

    def live(self, key: JobKey) -> Mirror | None:
        """The copy of the live job with this id."""
        return self._latest.get(key)

    def ended(self, key: JobKey) -> Job | None:
        """The last job with this id that ended, as far as its events are kept here."""
        owner, job_id = key
        self.tracker.forget_old(now())
        return self.tracker.ended_job(job_id, owner)

    def has_ended(self, key: JobKey, incarnation: str) -> bool:
        """Whether a use of an id is the last one that ended here."""
        owner, job_id = key
        record = self.tracker.ended_record(job_id, owner)
        return record is not None and record["incarnation"] == incarnation

    def at(self, worker: str) -> list[Mirror]:
        """The copies of a worker's jobs."""
        return [mirror for mirror in self._live.values() if mirror.worker == worker]

    def apply(self, mirror: Mirror, update: JobUpdate) -> None:
        """Bring a copy up to date.

        Raises:
            ValueError: something is missing in between.
        """
        if mirror.job.live:
            apply(update, mirror.job, now())
            self.streams.of(mirror.job).wake()
            if mirror.job.terminal is not None:
                self._finish(mirror)

    def ended_job(self, request: JobRequest, owner: str, update: JobUpdate) -> JobStream:
        """The stream of a job that has ended elsewhere."""
        job = new_copy(request, owner, self.run())
        apply(update, job, now())
        return self.streams.of(job)

    def end(self, mirror: Mirror) -> None:
        """A copy was ended here, since no worker has its job, or none that answers."""
        if self.get(mirror.job.incarnation) is mirror:
            self._metrics.ended(mirror.job)
            self._finish(mirror)

    def _finish(self, mirror: Mirror) -> None:
        job = mirror.job
        if not self._remove(mirror):
            return
        self.tracker.register(job)
        self.tracker.unregister(job, now())
        self.streams.ended(job)

    def _remove(self, mirror: Mirror) -> bool:
        for timer in (mirror.overdue, mirror.time_limit):
            if timer is not None:
                timer.cancel()
        if self._latest.get(mirror.job.key) is mirror:
            del self._latest[mirror.job.key]
        return self._live.pop(mirror.job.incarnation, None) is not None


def new_copy(request: JobRequest, owner: str, run: int) -> Job:
    """A copy of which nothing is known yet."""
    return Job(
        request=request, run=run, correlation_id="", seed=0, timeout_sec=0.0, accepted=now(), owner=owner
    )


def stop_here(mirror: Mirror, stop: StopRequest) -> None:
    """Stop a copy whose job no worker has, or none that answers: then nobody says what was freed, or when."""
    job = mirror.job
    if mirror.worker is not None and job.state is State.QUEUED:
        job.handed_over()  # It may have gone on since.
    job.request_stop(stop)
    if job.state is State.STOPPING:
        job.give_up(now())


def freed_now() -> Release:
    """What the death of a worker released."""
    moment = now().mono
    return Release(moment, moment)
