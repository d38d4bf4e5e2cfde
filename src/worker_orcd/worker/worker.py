"""The worker: passes client requests and engine messages to the core, and carries out the effects the core returns.

A cancel takes this path: `Worker.cancel` calls the dispatcher; the dispatcher's `SendStop` goes to the supervisor; the
engine interrupts its step and answers `Stopped`; `on_message` passes that to the dispatcher; the dispatcher's `Ended`
means that the terminal event is among the job's events, and the worker wakes its readers.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from worker_orcd import narration
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Effect
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import Capacity, ReadyEngine
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.replication import JobUpdate
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import Target, TargetState
from worker_orcd.protocol import messages
from worker_orcd.supervisor.engine import Death, Launch
from worker_orcd.supervisor.supervisor import EngineState, Supervisor
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.worker.alarm import Alarm
from worker_orcd.worker.effect_handler import EffectHandler
from worker_orcd.worker.job_log import JobLog
from worker_orcd.worker.metrics import Metrics
from worker_orcd.worker.model_names import ModelNames
from worker_orcd.worker.now import now
from worker_orcd.worker.observer import Observer, Observers, StopRequested
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.streams import JobStream, JobStreams
from worker_orcd.worker.tokenizing import Tokenizing
from worker_orcd.worker.wire import KvUsage, failure, refusal, released

SHUTDOWN_STOP_SEC = 0.2
"""How long a stop at shutdown may go unconfirmed before the engine is killed; the drain time comes before it."""


class Worker:
    """One model's worker. Everything happens on one asyncio loop; nothing here blocks."""

    def __init__(  # noqa: PLR0913  # all that is known of a worker before it starts
        self,
        policy: Policy,
        launch: Launch,
        narrator: narration.Narrator,
        *,
        worker_id: str,
        model_path: str,
        model_names: ModelNames | None = None,
        epoch: str = "",
    ) -> None:
        """Hold the model of this file. `epoch` names this start in the jobs' incarnations; by default it is random."""
        self.worker_id = worker_id
        self.started_at = time.monotonic()
        self.started_unix = time.time()
        self.dispatcher = Dispatcher(
            policy.ceilings, policy.max_queue, policy.cancel_memory_sec, epoch=epoch or secrets.token_hex(16)
        )
        self.supervisor = Supervisor(launch, self, policy.cancel_deadline_sec, f"model file {model_path}")
        self.metrics = Metrics()
        self.recommended_sampling: dict[str, float] = {}
        """Fields of a job as the model's makers recommend them, as far as its file says."""
        self.engine: messages.Ready | None = None
        self._tool_formats: tuple[ToolFormat, ...] = ()
        """Those of the latest engine. Kept when it dies, because outputs of ended jobs are parsed again."""
        self.tokenizing = Tokenizing(self.supervisor)
        self.model: str | None = None
        """The model's name, once an engine has reported it."""
        self.model_names = model_names or ModelNames.of(model_path)
        """Names that clients may use for the model, also before it is loaded."""
        self.kv_usage = KvUsage()
        self.prefix_store_bytes = 0
        """Host memory of computed prefixes, as the engine last reported it."""
        self.permanently_failed = asyncio.Event()
        """Set when no engine can be started any more."""
        self.ready = asyncio.Event()
        """Set when the first engine is ready."""
        self.policy = policy
        self.streams = JobStreams()
        self._observers = Observers(self.streams, self.metrics, JobLog(narrator, model_path))
        self._notify = self._observers.notify
        handler = EffectHandler(self.supervisor, self._observers, lambda: self.tool_formats)
        self._carry_out = handler.carry_out
        self._carry_out_stop = handler.carry_out_stop
        self._alarm = Alarm(self._on_deadline)
        self._lost_at: float | None = None

    @property
    def tool_formats(self) -> tuple[ToolFormat, ...]:
        """How the model writes calls of tools: as the operator says, or as its chat template does; empty: unknown."""
        if self.policy.tool_format != "auto":
            return (self.policy.tool_format,)
        return self._tool_formats

    def subscribe(self, observer: Observer) -> None:
        """Pass what happens from now on to one more observer."""
        self._observers.add(observer)

    def start(self) -> None:
        """Start loading the model; jobs are accepted from now on."""
        self._notify(Observer.loading)
        self.supervisor.start()

    # Clients.

    def execute(  # all that may be known of a request's jobs
        self,
        requests: Sequence[JobRequest],
        correlation_id: str,
        owner: str = "",
        headers: Mapping[str, str] = MappingProxyType({}),
        retry_of: StopRequest | None = None,
        copies: Sequence[JobUpdate] = (),
    ) -> list[JobStream]:
        """Accept the jobs of a client's request, all or none. Returns the streams of their events.

        Args:
            requests: the validated jobs.
            correlation_id: of the request.
            owner: of the jobs.
            headers: of the request; they may say which trace it is part of.
            retry_of: the client's cancel of the job that this request asks for again; it ends at once.
            copies: of the jobs that these continue, if another worker had accepted them.

        Raises:
            JobError: it is refused; nothing has changed then.
        """
        if self.supervisor.state is EngineState.PERMANENTLY_FAILED:
            raise JobError(
                ErrorCode.ENGINE_LOST, "the engine cannot be started; see /health", http_status=503
            )
        submitted = self.dispatcher.submit(
            requests, correlation_id, self._now(), owner, retry_of=retry_of, copies=copies
        )
        for job in submitted.jobs:
            self._notify(Observer.accepted, job, headers)
        stops = [
            StopRequested(stop, Target(TargetState.LIVE, job), job.job_id)
            for job in submitted.superseded
            if (stop := job.stop) is not None
        ]
        self._carry_out_stop(submitted.effects, stops)
        self._alarm.set(self.dispatcher.next_deadline())
        return [self.streams.of(job) for job in submitted.jobs]

    def cancel(self, job_id: str, correlation_id: str, owner: str = "") -> None:
        """Cancel a job for a client. Valid for any id, in any state."""
        now = self._now()
        stop = StopRequest(StopReason.CLIENT, now.mono, correlation_id)
        target, effects = self.dispatcher.cancel(job_id, stop, now, owner)
        self._carry_out_stop(effects, [StopRequested(stop, target, job_id)])

    def cancel_without_job(self, job_id: str, correlation_id: str, state: TargetState) -> None:
        """Report a client's cancel of a job that is not live here."""
        stop = StopRequest(StopReason.CLIENT, self._now().mono, correlation_id)
        self._notify(Observer.stop_requested, StopRequested(stop, Target(state), job_id))

    def cancelled_lately(self, job_ids: Sequence[str], owner: str) -> StopRequest | None:
        """A recent client's cancel of one of these jobs."""
        now = self._now()
        stops = (self.dispatcher.cancelled_lately(job_id, now, owner) for job_id in job_ids)
        return next((stop for stop in stops if stop is not None), None)

    def refused(self, job_id: str, owner: str = "") -> None:
        """Note a refused request: a cancel of this id that follows is for that request."""
        self.dispatcher.refused(job_id, self._now(), owner)

    def cancel_group(self, group: str, correlation_id: str, owner: str = "") -> None:
        """Cancel all live jobs of a group for a client."""
        now = self._now()
        stop = StopRequest(StopReason.CLIENT, now.mono, correlation_id)
        targets, effects = self.dispatcher.stop_group(group, stop, now, owner)
        targets = targets or [Target(TargetState.UNKNOWN)]
        stops = [StopRequested(stop, it, it.job.job_id if it.job else None, group) for it in targets]
        self._carry_out_stop(effects, stops)

    def stop_together(self, jobs: Sequence[Job], stop: StopRequest, group: str | None = None) -> None:
        """Stop several live jobs, so that none of them is started in the place of another."""
        targets, effects = self.dispatcher.stop_together([(job, stop) for job in jobs], self._now())
        stops = [StopRequested(stop, it, it.job.job_id if it.job else None, group) for it in targets]
        self._carry_out_stop(effects, stops)

    def stream_of(self, job_id: str, owner: str = "") -> JobStream:
        """A job's stream, for one more reader; also of a job that has ended.

        Raises:
            JobError: `JOB_NOT_FOUND`, nothing of it is kept.
        """
        tracker = self.dispatcher.tracker
        job = tracker.live(job_id, owner) or tracker.ended_job(job_id, owner)
        if job is not None:
            return self.streams.of(job)
        if tracker.ended(job_id, owner):
            raise JobError(ErrorCode.JOB_NOT_FOUND, "the job has ended and its events are no longer kept")
        raise JobError(ErrorCode.JOB_NOT_FOUND, "no job with this id is live or remembered")

    def reader_left(self, stream: JobStream) -> None:
        """The connection of a job's request is closed. The job is stopped as soon as nobody reads it, unless its
        `on_disconnect` is `continue`."""
        stream.client_left = True
        self.follower_left(stream)

    def follower_left(self, stream: JobStream) -> None:
        """Another reader's connection is closed. It stops nothing while the connection of the job's request is open."""
        stream.leave()
        job = stream.job
        if stream.readers or not stream.client_left or not job.live:
            return
        if not job.stop:
            self._notify(Observer.reader_left, job)
        if job.request.on_disconnect == "cancel":
            self.stop(job, StopReason.DISCONNECT)

    def stop(self, job: Job, reason: StopReason, superseded_by: str | None = None) -> None:
        """Stop this job, if it is still live."""
        if job.live:
            now = self._now()
            stop = StopRequest(reason, now.mono, job.correlation_id, superseded_by)
            target, effects = self.dispatcher.stop(job, stop, now)
            self._carry_out_stop(effects, [StopRequested(stop, target, job.job_id)])

    def forget_old(self) -> None:
        """Drop records that are too old to be shown."""
        self.dispatcher.tracker.forget_old(self._now())

    # The engine (SupervisorListener).

    def on_message(self, message: messages.FromEngine) -> None:
        """Handle a message of the engine."""
        now = self._now()
        match message:
            case messages.Step():
                self._step(message, now)
            case messages.Stopped():
                self.kv_usage = KvUsage.after(message)
                self._carry_out(self.dispatcher.stopped(message.run, released(message, now), now))
            case messages.Stored():
                self.prefix_store_bytes, self.kv_usage = message.bytes, KvUsage.after(message)
            case messages.Accepted() | messages.Tokenized() | messages.Rejected():
                self._prepared(message, now)
            case messages.Started():
                self._started(message, now)
            case messages.AuditFault():
                self._notify(Observer.audit_fault, message, self.dispatcher.tracker.by_run(message.run or 0))
            case messages.NarrationEvent():
                self._notify(Observer.narrated, message)
            case messages.Loading():
                if not self.supervisor.ever_ready:
                    self._notify(Observer.load_progress, message.percent)
            case messages.Ready():
                self._ready(message)

    def _prepared(
        self, message: messages.Accepted | messages.Tokenized | messages.Rejected, now: Timestamp
    ) -> None:
        """The engine has prepared a prompt, or rejects it: a job's, or one that is only tokenized."""
        if not isinstance(message, messages.Accepted) and self.tokenizing.answered(message):
            return
        if isinstance(message, messages.Rejected):
            freed = Release(now.mono, now.mono)
            self._carry_out(self.dispatcher.failed(message.run, refusal(message), freed, now))
            return
        self._carry_out(self.dispatcher.accepted(message.run, message.prompt, now))
        if (job := self.dispatcher.tracker.by_run(message.run)) is not None:
            self._notify(Observer.measured, job)

    def _started(self, message: messages.Started, now: Timestamp) -> None:
        if (job := self.dispatcher.started(message.run, now)) is not None:
            self._notify(Observer.started, job)

    def lost(self, death: Death) -> None:
        """The engine is dead."""
        now = self._now()
        self.engine = None
        self.tokenizing.engine_lost()
        self.kv_usage = KvUsage()
        self._lost_at = now.mono
        ended_as_asked = self.dispatcher.draining and not len(self.dispatcher.tracker)
        failed = self.supervisor.state is EngineState.PERMANENTLY_FAILED
        never_loaded = failed and not self.supervisor.ever_ready
        if ended_as_asked or never_loaded:
            return  # No loss: it was closed, or `on_permanent_failure` says why it could not start.
        self._notify(Observer.lost, death, self.dispatcher.queue.in_slots)
        self._carry_out(self.dispatcher.engine_lost(death.why, now))

    def on_permanent_failure(self, reason: str, code: str) -> None:
        """No engine can be started any more: end every job."""
        now = self._now()
        self._notify(Observer.permanently_failed, reason, code)
        # The reason may name paths: it is for operators, in the narration and in /health.
        error = JobError(ErrorCode.ENGINE_LOST, "The engine cannot be started any more")
        for job in self.dispatcher.tracker:
            self._carry_out(self.dispatcher.failed(job.run, error, Release(now.mono, now.mono), now))
        self.permanently_failed.set()

    def held(self) -> tuple[int, ...]:
        """The runs that the engine should hold; it compares them with its own."""
        return tuple(job.run for job in self.dispatcher.queue.in_engine)

    def give_up(self, run: int) -> None:
        """A run's stop is overdue and was not confirmed, not even by the engine's death: end its job."""
        job = self.dispatcher.tracker.by_run(run)
        if job is not None:
            self._carry_out(self.dispatcher.give_up(job, self._now()))

    def _ready(self, ready: messages.Ready) -> None:
        self.engine = ready
        self._tool_formats = ready.tool_formats
        self.model = ready.model
        self.model_names = self.model_names.with_name(ready.model)
        first = not self.ready.is_set()
        self.ready.set()
        if first or self._lost_at is None:
            self._notify(Observer.loaded, ready)
        else:
            self._notify(Observer.restarted, self.supervisor.pid, self.supervisor.restarts, self._lost_at)
        capacity = Capacity(ready.cells, ready.cells_per_job, ready.sequences)
        self._carry_out(self.dispatcher.engine_ready(ReadyEngine(capacity, ready.model)))

    def _step(self, step: messages.Step, now: Timestamp) -> None:
        """Handle the results of a step: the front's only work per token."""
        self.kv_usage = KvUsage.after(step)
        self._notify(Observer.stepped, step)
        for scored in step.prompt_logprobs:
            if (job := self.dispatcher.tracker.by_run(scored.run)) is not None:
                job.prompt_logprobs[scored.first :] = scored.logprobs
        for progress in step.progress:
            self.dispatcher.progress(progress.run, progress.prompt_processed, progress.cached)
        for progress in step.progress:
            if (job := self.dispatcher.report_progress(progress.run, now)) is not None:
                self._notify(Observer.progress, job)
        for out in step.tokens:
            self._token(out, now)
        effects: list[Effect] = []
        for end in step.ended:
            freed = Release(now.mono, now.mono, end.cells_before, end.cells_after, cells_warm=end.cells_warm)
            if end.reason is not None:
                effects += self.dispatcher.finished(end.run, end.reason, freed, now, end.embedding)
            else:
                effects += self.dispatcher.failed(end.run, failure(end), freed, now)
        for run in step.preempted:
            self.dispatcher.preempted(run)
            if (job := self.dispatcher.tracker.by_run(run)) is not None:
                self._notify(Observer.preempted, job)
        self.dispatcher.returned(step.returned)
        self.dispatcher.queue.followers = step.followers
        if len(self.dispatcher.queue):
            effects += self.dispatcher.start_next()
        self._carry_out(effects)

    def _token(self, out: messages.TokenOut, now: Timestamp) -> None:
        job = self.dispatcher.tracker.by_run(out.run)
        previous_at = job.last_token_at if job else None
        job = self.dispatcher.token(out.run, out.token, out.text, now, out.held, out.logprobs)
        if job is not None:
            self._notify(Observer.token, job, previous_at, generated=out.token is not None)

    # Time.

    def _now(self) -> Timestamp:
        return now()

    def _on_deadline(self) -> None:
        late, effects = self.dispatcher.expire(self._now())
        for job in late:
            self._notify(Observer.timed_out, job)
        self._carry_out(effects)
        self._alarm.set(self.dispatcher.next_deadline())

    # The end.

    async def drain(self) -> None:
        """Accept no more jobs, let jobs finish for the drain time, stop the rest, and end the engine."""
        self.dispatcher.draining = True
        queue = self.dispatcher.queue
        self._notify(Observer.draining, queue.running, len(queue), self.policy.drain_sec)
        if not await self.streams.all_ended(self.policy.drain_sec):
            stop = StopRequest(StopReason.SHUTDOWN, self._now().mono)
            self.stop_together(tuple(self.dispatcher.tracker), stop)
            if not await self.streams.all_ended(SHUTDOWN_STOP_SEC):
                self.supervisor.kill("it does not stop its jobs at shutdown")
                if not await self.streams.all_ended(SHUTDOWN_STOP_SEC):
                    for job in self.dispatcher.tracker:
                        self.give_up(job.run)
        await self.supervisor.close()
