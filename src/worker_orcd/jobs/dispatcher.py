"""The core's one face: facts come in, decisions go out as effects.

Facts are what clients ask, what the engine reports and what time it is. Nothing here waits, sleeps or talks.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import count

from worker_orcd.jobs.effects import Effect, Ended, Halt, Prepare, Run
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import StopReason as EndReason
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.moment import Moment
from worker_orcd.jobs.queue import Capacity, JobQueue
from worker_orcd.jobs.receipt import Freed
from worker_orcd.jobs.request import Ceilings, ExecuteRequest
from worker_orcd.jobs.stops import Stop, StopReason
from worker_orcd.jobs.tracker import JobTracker


class Known(StrEnum):
    """What was known of a job id when somebody wanted it stopped."""

    LIVE = "live"
    STOPPING = "stopping"
    FINISHED = "finished"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ReadyEngine:
    """An engine that can take work: what it holds, and the model's name."""

    capacity: Capacity
    model: str


class Dispatcher:
    """Takes jobs in, hands them to the engine in order when they fit, and ends each exactly once."""

    def __init__(self, ceilings: Ceilings, max_queue: int) -> None:
        self.tracker = JobTracker()
        self.queue = JobQueue()
        self.draining = False
        self._ceilings = ceilings
        self._max_queue = max_queue
        self._engine: ReadyEngine | None = None
        self._runs = count(1)

    # Clients.

    def submit(self, request: ExecuteRequest, correlation_id: str, now: Moment) -> tuple[Job, list[Effect]]:
        """Take a job in.

        Raises:
            JobError: `DRAINING`, `JOB_ID_IN_USE` or `QUEUE_FULL`; nothing has changed then.
        """
        if self.draining:
            raise JobError(ErrorCode.DRAINING, "the worker is shutting down", retry_after_sec=5)
        if len(self.queue) >= self._max_queue and self.tracker.live(request.job_id) is None:
            raise JobError(
                ErrorCode.QUEUE_FULL, f"{len(self.queue)} jobs are waiting already", retry_after_sec=1
            )
        job = Job(
            request=request,
            run=next(self._runs),
            correlation_id=correlation_id,
            seed=request.seed_or_drawn(),
            timeout_sec=request.timeout_within(self._ceilings),
            accepted=now,
            phase=self._waiting_phase(),
        )
        self.tracker.register(job)
        self.queue.append(job)
        return job, [Prepare(job)] if self._engine else []

    def stop(self, job_id: str, stop: Stop, now: Moment) -> tuple[Known, list[Effect]]:
        """Stop the live job with this id, if there is one. The one way in which any job is stopped."""
        job = self.tracker.live(job_id)
        if job is None:
            return (Known.FINISHED if self.tracker.ended(job_id) else Known.UNKNOWN), []
        before = job.state
        self.tracker.cancel(job_id, stop)
        match before, job.state:
            case State.STOPPING, _:
                return Known.STOPPING, []
            case _, State.ENDED:
                return Known.LIVE, self._ended(job, now)
            case _:
                return Known.LIVE, [Halt(job)]

    def stop_all(self, stop: Stop, now: Moment) -> list[Effect]:
        """Stop every live job."""
        # The latest first: so none that waits is started in the place of one that went, only to be stopped too.
        latest_first = reversed(tuple(self.tracker))
        return [effect for job in latest_first for effect in self.stop(job.job_id, stop, now)[1]]

    # Time.

    def expire(self, now: Moment) -> tuple[list[Job], list[Effect]]:
        """Stop the jobs whose deadline has passed; returns them too, for the telling."""
        late = [job for job in self.tracker if job.deadline <= now.mono and not job.stop]
        effects: list[Effect] = []
        for job in reversed(late):  # As in `stop_all`.
            effects += self.stop(job.job_id, Stop(StopReason.DEADLINE, now.mono, job.correlation_id), now)[1]
        self.tracker.forget_old(now)
        return late, effects

    def next_deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return min((job.deadline for job in self.tracker if not job.stop), default=None)

    def give_up(self, job: Job, now: Moment) -> list[Effect]:
        """End a job whose stop could not be confirmed in time by anybody."""
        if job.state is not State.STOPPING:
            return []
        job.give_up(now)
        # Nobody knows what such an engine still holds: who waits, waits for the next one.
        self._engine = None
        return self._ended(job, now)

    # The engine.

    def engine_ready(self, engine: ReadyEngine) -> list[Effect]:
        """An engine can take work: measure what has been waiting for it."""
        self._engine = engine
        waiting = [job for job in self.tracker if job.state is State.QUEUED]
        for job in waiting:
            job.phase = self._waiting_phase()
            job.prompt_tokens = None
        return [Prepare(job) for job in waiting]

    def engine_lost(self, message: str, now: Moment) -> list[Effect]:
        """The engine is dead: what it was running ends, what waits goes on waiting for the next one."""
        self._engine = None
        effects: list[Effect] = []
        for job in self.tracker:
            job.engine_lost(now, message)
            if job.live:
                job.phase = self._waiting_phase()
            else:
                effects += self._ended(job, now)
        return effects

    def prepared(self, run: int, prompt_tokens: tuple[int, ...], now: Moment) -> list[Effect]:
        """The engine has counted a prompt: does the job fit at all, and does it fit now?"""
        job = self.tracker.by_run(run)
        if job is None or job.state is not State.QUEUED or self._engine is None:
            return []
        try:
            max_tokens = self._engine.capacity.max_tokens_for(
                len(prompt_tokens), job.request.max_tokens, self._ceilings.max_tokens_out
            )
        except JobError as error:
            return self._failed(job, error, Freed(now.mono, now.mono), now)
        job.measured(prompt_tokens, max_tokens)
        return self._admit(now)

    def token(self, run: int, token: int | None, text: str, now: Moment) -> Job | None:
        """The engine reports a token. Returns the job whose readers have something new."""
        job = self.tracker.by_run(run)
        return job if job is not None and job.token(now, token, text) else None

    def progress(self, run: int, prompt_processed: int) -> None:
        """The engine has read so many prompt tokens of a job."""
        job = self.tracker.by_run(run)
        if job is not None:
            job.prompt_processed = prompt_processed

    def finished(self, run: int, reason: EndReason, freed: Freed, now: Moment) -> list[Effect]:
        """The engine reports a job's natural end; it holds nothing any more."""
        job = self.tracker.by_run(run)
        if job is None:
            return []
        job.finished(now, reason, freed)
        return self._ended(job, now)

    def failed(self, run: int, error: JobError, freed: Freed, now: Moment) -> list[Effect]:
        """The engine could not go on with (or not prepare) a job; it holds nothing any more."""
        job = self.tracker.by_run(run)
        return [] if job is None else self._failed(job, error, freed, now)

    def stopped(self, run: int, freed: Freed, now: Moment) -> list[Effect]:
        """The engine confirms a stop. A confirmation for a job that ended meanwhile is no news."""
        job = self.tracker.by_run(run)
        if job is None or job.state is not State.STOPPING:
            return []
        job.stopped(now, freed)
        return self._ended(job, now)

    def _failed(self, job: Job, error: JobError, freed: Freed, now: Moment) -> list[Effect]:
        job.failed(now, error, freed)
        return self._ended(job, now)

    def _ended(self, job: Job, now: Moment) -> list[Effect]:
        self.queue.leave(job)
        self.tracker.unregister(job, now)
        return [Ended(job), *self._admit(now)]

    def _admit(self, now: Moment) -> list[Effect]:
        effects: list[Effect] = []
        while self._engine and (job := self.queue.next_to_run(self._engine.capacity)):
            job.start(now, self._engine.model)
            effects.append(Run(job))
        return effects

    def _waiting_phase(self) -> Phase:
        return Phase.QUEUED if self._engine else Phase.LOADING
