"""The entry point of the pure core: takes events, returns effects.

Events are client requests, engine messages and the time. Nothing here waits, sleeps or does I/O.
"""

from collections.abc import Iterable, Sequence

from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.deadlines import Deadlines
from worker_orcd.jobs.effects import Begin, Drop, Effect, Ended, SendStop, Submit, Submitted
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import StopReason as EndReason
from worker_orcd.jobs.incarnations import Incarnations
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.pending_cancels import PendingCancels
from worker_orcd.jobs.preparing import Preparing
from worker_orcd.jobs.queue import JobQueue, ReadyEngine
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.refused_requests import RefusedRequests
from worker_orcd.jobs.replication import JobUpdate, restore
from worker_orcd.jobs.request import Ceilings, JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import Target, TargetState
from worker_orcd.jobs.suspects import MAX_DEATHS, Suspects, is_suspect
from worker_orcd.jobs.tracker import JobTracker
from worker_orcd.sampling import Logprobs


class Dispatcher:
    """Accepts jobs, hands them to the engine in order, and ends each exactly once."""

    def __init__(
        self, ceilings: Ceilings, max_queue: int, cancel_memory_sec: float = 5.0, *, epoch: str = "0"
    ) -> None:
        """Begin without an engine. `epoch`: a secret of this start of the worker, for unique incarnations."""
        self._incarnations = Incarnations(epoch)
        self.tracker = JobTracker()
        self.queue = JobQueue()
        self.remembered = PendingCancels(cancel_memory_sec)
        self._refused = RefusedRequests()
        self._cancelled = PendingCancels(cancel_memory_sec)
        """Clients' cancels of live jobs. On `/v1`, a request with the same id counts as a retry for a while."""
        self.draining = False
        self._ceilings = ceilings
        self._max_queue = max_queue
        self._engine: ReadyEngine | None = None
        self._stopping_together = False
        self._deadlines = Deadlines()
        self._preparing = Preparing()
        self._kept: set[int] = set()
        """Runs that the engine has accepted and keeps until they begin."""
        self._suspects = Suspects()

    # Clients.

    def cancelled_lately(self, job_id: str, now: Timestamp, owner: str = "") -> StopRequest | None:
        """The cancel with which a client stopped the latest job with this id, if it is recent."""
        return self._cancelled.of((owner, job_id), now)

    def submit(
        self,
        requests: Sequence[JobRequest],
        correlation_id: str,
        now: Timestamp,
        owner: str = "",
        *,
        retry_of: StopRequest | None = None,
        copies: Sequence[JobUpdate] = (),
    ) -> Submitted:
        """Accept the jobs of one client's request, all of them or none, and stop the jobs that they supersede.

        When this returns, a job whose cancel arrived first has ended, and so has a retry of the job that the cancel
        `retry_of` stopped. If that is the first job, none is superseded. The new jobs take over the superseded ones'
        place in the queue (`Job.take_place_of`). The effects begin with the stops, which free cells for the new runs.

        With `copies`, the jobs continue those of which these are copies, which were accepted elsewhere. They may come
        in another order: then the older one is superseded at once, though it comes later.

        Raises:
            JobError: `DRAINING`, `JOB_ID_IN_USE` or `QUEUE_FULL`. Then no job has changed.
        """
        cancels = [retry_of or self.remembered.of((owner, request.job_id), now) for request in requests]
        place = copies[0].accepted_unix if copies else float("inf"), correlation_id
        superseded, newer = ([], None) if cancels[0] else self.tracker.rivals(requests[0], owner, place)
        if newer is not None:
            late = StopRequest(StopReason.SUPERSEDED, now.mono, newer.correlation_id, newer.job_id)
            superseded, cancels = [], [late] * len(requests)
        waiting = len(self.queue) - sum(job.state in (State.QUEUED, State.WAITING) for job in superseded)
        if self.draining:
            self.refused(requests[0].job_id, now, owner)
            raise JobError(ErrorCode.DRAINING, "the worker is shutting down", retry_after_sec=5)
        for request in requests:
            self.tracker.refuse_live(request.job_id, owner)
        # Where none waits, even a request of more jobs than may wait is accepted, as it never would be otherwise.
        new = cancels.count(None)
        is_full = waiting + new > self._max_queue and (waiting > 0 or new == 1)
        if is_full and new and not any(copy.events for copy in copies):
            self.refused(requests[0].job_id, now, owner)
            # The message does not contain the queue's length, which would reveal other tenants' load.
            raise JobError(ErrorCode.QUEUE_FULL, "the queue is full", retry_after_sec=1)
        stop = StopRequest(StopReason.SUPERSEDED, now.mono, correlation_id, requests[0].job_id)
        effects = self.stop_together([(job, stop) for job in superseded], now)[1] if superseded else []
        jobs = [self._accepted(request, correlation_id, now, owner) for request in requests]
        for job, copy in zip(jobs, copies, strict=False):
            restore(copy, job, now)
        for job, cancel in zip(jobs, cancels, strict=True):
            job.take_place_of(superseded)
            effects += self._enqueued(job, now, cancel, retry=retry_of is not None)
        return Submitted(jobs, superseded if newer is None else jobs, effects)

    def _accepted(self, request: JobRequest, correlation_id: str, now: Timestamp, owner: str) -> Job:
        run, incarnation = self._incarnations.next()
        return Job(
            request=request,
            run=run,
            incarnation=incarnation,
            correlation_id=correlation_id,
            seed=request.seed_or_drawn(),
            timeout_sec=request.timeout_within(self._ceilings),
            accepted=now,
            owner=owner,
            phase=self._waiting_phase(),
        )

    def _enqueued(self, job: Job, now: Timestamp, cancel: StopRequest | None, *, retry: bool) -> list[Effect]:
        """Queue a job, or end it because its cancel arrived first."""
        self.tracker.register(job)
        self._refused.accepted(job.key)
        self.queue.append(job)
        if job.prompt_tokens is None:
            self._preparing.add(job)
        else:
            self.queue.prompt_counted(job)
        self._suspects.add_if_suspect(job)
        self._deadlines.add(job, len(self.tracker))
        if not retry:
            self._cancelled.use(job.key)
        if cancel is None:
            return self.start_next()
        if not retry:
            self.remembered.use(job.key)
            if cancel.reason is StopReason.CLIENT:
                self._cancelled.add(job.key, cancel)
        # The receipt's times count from the job's acceptance.
        job.request_stop(StopRequest(cancel.reason, now.mono, cancel.correlation_id, cancel.superseded_by))
        return self._ended(job, now)

    def refused(self, job_id: str, now: Timestamp, owner: str = "") -> None:
        """Note that a request with this id was refused, by any part of the worker."""
        self._refused.add((owner, job_id), now)

    def cancel(
        self, job_id: str, stop: StopRequest, now: Timestamp, owner: str = ""
    ) -> tuple[Target, list[Effect]]:
        """Stop the live job with this id for a client, or the live jobs of the request with this id.

        A cancel of an unknown id is kept for a while, because its job may arrive later. A cancel that follows a refused
        request is meant for that request and is not kept.
        """
        job = self.tracker.live(job_id, owner)
        if job is not None:
            return self.stop(job, stop, now)
        if parts := self.tracker.parts_of(job_id, owner):
            self._cancelled.add((owner, job_id), stop)
            targets, effects = self.stop_together([(part, stop) for part in parts], now)
            return targets[0], effects
        self.tracker.forget_old(now)
        if self.tracker.ended(job_id, owner):
            return Target(TargetState.FINISHED), []
        if not self._refused.has((owner, job_id), now):
            self.remembered.add((owner, job_id), stop)
        return Target(TargetState.UNKNOWN), []

    def stop(self, job: Job, stop: StopRequest, now: Timestamp) -> tuple[Target, list[Effect]]:
        """Stop a live job. Every stop goes through this method. Of several stops of one job, only the first counts."""
        if stop.reason is StopReason.CLIENT:
            self._cancelled.add(job.key, stop)
        if not job.request_stop(stop):
            return Target(TargetState.STOPPING, job), []
        return Target(TargetState.LIVE, job), [SendStop(job)] if job.live else self._ended(job, now)

    def stop_group(
        self, group: str, stop: StopRequest, now: Timestamp, owner: str = ""
    ) -> tuple[list[Target], list[Effect]]:
        """Stop every live job of exactly this group."""
        return self.stop_together([(job, stop) for job in self.tracker.in_group(group, owner)], now)

    # Time.

    def expire(self, now: Timestamp) -> tuple[list[Job], list[Effect]]:
        """Stop the jobs whose time limit has passed. Returns these jobs, too, for log events."""
        late = list(self._deadlines.passed(now.mono))
        stops = [(job, StopRequest(StopReason.TIMEOUT, now.mono, job.correlation_id)) for job in late]
        _, effects = self.stop_together(stops, now)
        self.tracker.forget_old(now)
        return late, effects

    def stop_together(
        self, stops: Iterable[tuple[Job, StopRequest]], now: Timestamp
    ) -> tuple[list[Target], list[Effect]]:
        """Stop several live jobs together, so that none of them is started in the place of another."""
        targets: list[Target] = []
        effects: list[Effect] = []
        self._stopping_together = True
        for job, stop in stops:
            target, stopped = self.stop(job, stop, now)
            targets.append(target)
            effects += stopped
        self._stopping_together = False
        return targets, effects + self.start_next()

    def next_deadline(self) -> float | None:
        """Time of the next deadline, when `expire` must be called."""
        return self._deadlines.next()

    def give_up(self, job: Job, now: Timestamp) -> list[Effect]:
        """End a job whose stop was not confirmed in time, not even by the engine's death."""
        if job.state is not State.STOPPING:
            return []
        job.give_up(now)
        # How many cells this engine still holds is unknown, so waiting jobs wait for the next engine.
        self._engine = None
        return self._ended(job, now)

    # The engine.

    def engine_ready(self, engine: ReadyEngine) -> list[Effect]:
        """An engine is ready: start waiting jobs."""
        self._engine = engine
        for job in self.queue:
            job.phase = self._waiting_phase()
        self._preparing = Preparing(job for job in self.queue if job.prompt_tokens is None)
        return self.start_next()

    def engine_lost(self, why: str, now: Timestamp) -> list[Effect]:
        """The engine is dead: jobs that were being stopped have stopped, and all others wait for the next engine.

        The death counts for the jobs that it ran and for the job whose prompt it was preparing: each may be the cause.
        """
        was_ready, self._engine = self._engine is not None, None
        reading = self.tracker.by_run(self._preparing.oldest or 0) if was_ready else None
        # Prompts that the engine has not prepared wait for the next one (`engine_ready`).
        self._preparing = Preparing()
        self._kept.clear()
        effects: list[Effect] = []
        for job in self.tracker:
            was_running = job.state is State.RUNNING
            job.engine_lost(now)
            if not job.live:
                effects += self._ended(job, now)
                continue
            job.phase = self._waiting_phase()
            job.deaths += was_running or job is reading
            self._suspects.add_if_suspect(job)
            if job.deaths >= MAX_DEATHS:
                message = f"The engine died {job.deaths} times with this job, the last time because {why}"
                effects += self._failed(
                    job, JobError(ErrorCode.ENGINE_LOST, message), Release(now.mono, now.mono), now
                )
        self.queue.engine_lost()
        return effects

    def preempted(self, run: int) -> None:
        """The engine has preempted a job, because others need its cells or its slot. The job waits in the engine."""
        if (job := self.tracker.by_run(run)) is not None:
            job.preempted()
            if job.state is State.WAITING:
                job.phase = self._waiting_phase()

    def returned(self, runs: Iterable[int]) -> None:
        """The engine has returned waiting jobs, because many more urgent ones wait there."""
        for job in map(self.tracker.by_run, runs):
            if job is not None:
                job.returned()
                self.queue.returned(job)

    def accepted(self, run: int, prompt_tokens: tuple[int, ...], now: Timestamp) -> list[Effect]:
        """The engine has counted a prompt and keeps it. End the job if it can never fit, or start the next job."""
        self._preparing.prepared(run)
        job = self.tracker.by_run(run)
        if job is None or job.state is not State.QUEUED or self._engine is None:
            return self.start_next()
        self._kept.add(run)
        try:
            max_tokens = self._engine.capacity.max_tokens_for(
                len(prompt_tokens),
                job.request.max_tokens,
                self._ceilings.max_tokens_out,
                cut=job.request.cuts_max_tokens,
            )
        except JobError as error:
            return self._failed(job, error, Release(now.mono, now.mono), now)
        job.measured(prompt_tokens, max_tokens)
        self.queue.prompt_counted(job)
        return self.start_next()

    def start_next(self) -> list[Effect]:
        """Have prompts prepared, and hand over as many jobs as the engine should have: while there is a suspect
        (`suspects.py`), only this job, until its first token, since it may kill the engine. May be called at any time.
        """
        engine = self._engine
        if engine is None or self._stopping_together:
            return []
        suspect = self._suspects.oldest()
        effects: list[Effect] = []
        while job := self._preparing.next(only=suspect):
            effects.append(Submit(job))
        if suspect is None:
            while head := self.queue.next_to_hand_over(engine.capacity):
                effects += self._handed_over(head)
        elif (
            suspect.state is State.QUEUED
            and suspect.prompt_tokens is not None
            and not any(map(is_suspect, self.queue.in_engine))
            and self.queue.hand_over(suspect, engine.capacity)
        ):
            effects += self._handed_over(suspect)
        return effects

    def _handed_over(self, job: Job) -> list[Effect]:
        """Hand a job over. If an earlier engine has counted the prompt, this one gets the tokens, without new
        checks."""
        submits: list[Effect] = [] if job.run in self._kept else [Submit(job)]
        self._kept.discard(job.run)
        job.handed_over()
        return [*submits, Begin(job)]

    def started(self, run: int, now: Timestamp) -> Job | None:
        """The engine has given a job a slot. Returns the job if it runs now."""
        job, engine = self.tracker.by_run(run), self._engine
        return job if job is not None and engine is not None and job.started(now, engine.model) else None

    def token(  # The arguments are those of `TokenOut`.
        self,
        run: int,
        token: int | None,
        text: str,
        now: Timestamp,
        held: str = "",
        logprobs: Logprobs = (),
    ) -> Job | None:
        """The engine reports a token. Returns the job if its readers have a new event."""
        job = self.tracker.by_run(run)
        return job if job is not None and job.token(now, token, text, held, logprobs) else None

    def progress(self, run: int, prompt_processed: int, cached: int = 0) -> None:
        """The engine has computed this many tokens of a job's prompt; `cached` of them were reused."""
        job = self.tracker.by_run(run)
        if job is not None:
            job.in_cells(prompt_processed, cached)

    def report_progress(self, run: int, now: Timestamp) -> Job | None:
        """Called after all progress of a step. Returns the job if its readers have a new event."""
        job = self.tracker.by_run(run)
        return job if job is not None and job.report_progress(now) else None

    def finished(
        self, run: int, reason: EndReason, freed: Release, now: Timestamp, embedding: bytes = b""
    ) -> list[Effect]:
        """The engine reports a job's natural end. Its cells are free."""
        job = self.tracker.by_run(run)
        if job is None:
            return []
        job.finished(now, reason, freed, embedding)
        return self._ended(job, now)

    def failed(self, run: int, error: JobError, freed: Release, now: Timestamp) -> list[Effect]:
        """The engine failed to prepare or to compute a job. Its cells are free."""
        self._preparing.prepared(run)
        job = self.tracker.by_run(run)
        return self.start_next() if job is None else self._failed(job, error, freed, now)

    def stopped(self, run: int, freed: Release, now: Timestamp) -> list[Effect]:
        """The engine confirms a stop. Ignored if the job has already ended."""
        job = self.tracker.by_run(run)
        if job is None or job.state is not State.STOPPING:
            return []
        job.stopped(now, freed)
        return self._ended(job, now)

    def _failed(self, job: Job, error: JobError, freed: Release, now: Timestamp) -> list[Effect]:
        job.failed(now, error, freed)
        return self._ended(job, now)

    def _ended(self, job: Job, now: Timestamp) -> list[Effect]:
        self.queue.remove(job)
        self._preparing.remove(job)
        self.tracker.unregister(job, now)
        dropped = [Drop(job)] if job.run in self._preparing or job.run in self._kept else []
        self._kept.discard(job.run)
        return [Ended(job), *dropped, *self.start_next()]

    def _waiting_phase(self) -> Phase:
        return Phase.QUEUED if self._engine else Phase.LOADING
