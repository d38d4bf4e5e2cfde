"""The worker: passes client requests and engine messages to the core, and carries out the effects the core returns.

A cancel takes this path: `Worker.stop` calls the dispatcher; the dispatcher's `SendStop` goes to the supervisor; the
engine interrupts its step and answers `Stopped`; `on_message` passes that to the dispatcher; the dispatcher's `Ended`
means that the terminal event is among the job's events, and the worker wakes its readers.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from worker_orcd import narration
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.dispatcher import Dispatcher, ReadyEngine, TargetState
from worker_orcd.jobs.effects import DropPrompt, Effect, Ended, Prepare, Run, SendStop
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import Error
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import Capacity
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.request import Ceilings, JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.protocol import messages
from worker_orcd.supervisor.engine import Death, Launch
from worker_orcd.supervisor.supervisor import EngineState, Supervisor
from worker_orcd.worker.job_log import JobLog
from worker_orcd.worker.metrics import Metrics
from worker_orcd.worker.model_names import ModelNames
from worker_orcd.worker.streams import JobStream
from worker_orcd.worker.wire import to_prepare, to_run

if TYPE_CHECKING:  # It needs an extra.
    from worker_orcd.worker.tracing import Tracing

SHUTDOWN_STOP_SEC = 0.2
"""How long a stop at shutdown may go unconfirmed before the engine is killed; the drain time comes before it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """An operator's limits for jobs. Seconds and counts, as in `Settings`."""

    ceilings: Ceilings = field(default_factory=Ceilings)
    max_queue: int = 512
    cancel_deadline_sec: float = 5.0
    cancel_memory_sec: float = 5.0
    drain_sec: float = 4.0


@dataclass(frozen=True, slots=True)
class KvUsage:
    """KV usage as the engine last reported it."""

    cells_used: int = 0
    sequences_used: int = 0
    cells_cached: int = 0


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
        """Hold the model of this file, by these names; without any, by the file's. `epoch` names this start of the
        worker in the incarnations of its jobs; left out, it is drawn."""
        self.worker_id = worker_id
        self.started_at = time.monotonic()
        self.started_unix = time.time()
        self.dispatcher = Dispatcher(
            policy.ceilings, policy.max_queue, policy.cancel_memory_sec, epoch=epoch or secrets.token_hex(16)
        )
        self.supervisor = Supervisor(launch, self, policy.cancel_deadline_sec, f"model file {model_path}")
        self.metrics = Metrics()
        self.tracing: Tracing | None = None
        self.recommended_sampling: dict[str, float] = {}
        """Fields of a job as the model's makers recommend them, as far as its file says."""
        self.engine: messages.Ready | None = None
        self.model: str | None = None
        """The model's name, once an engine has reported it."""
        self.model_names = model_names or ModelNames.of(model_path)
        """Names that clients may use for the model, also before it is loaded."""
        self.kv_usage = KvUsage()
        self.prefix_store_bytes = 0
        """Host memory of computed prefixes, as the engine last reported it."""
        self.permanently_failed = asyncio.Event()
        """Set when no engine can be had any more."""
        self.ready = asyncio.Event()
        """Set when the first engine is ready."""
        self.policy = policy
        self._model_path = model_path
        self._job_log = JobLog(narrator, model_path)
        self._streams: dict[int, JobStream] = {}
        """Those of live jobs."""
        self._followed: WeakValueDictionary[int, JobStream] = WeakValueDictionary()
        """Streams with readers, so that readers of ended jobs are counted as well."""
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = float("inf")
        self._idle = asyncio.Event()
        self._idle.set()
        self._lost_at: float | None = None

    def start(self) -> None:
        """Start loading the model; jobs are accepted from now on."""
        self._job_log.loading()
        self.supervisor.start()

    # Clients.

    def execute(
        self,
        requests: Sequence[JobRequest],
        correlation_id: str,
        owner: str = "",
        headers: Mapping[str, str] = MappingProxyType({}),
        retry_of: StopRequest | None = None,
    ) -> list[JobStream]:
        """Accept the jobs of a client's request, all or none. Returns the streams of their events.

        Args:
            requests: the validated jobs.
            correlation_id: of the request.
            owner: whose it is.
            headers: of the request; they may say which trace it is part of.
            retry_of: the client's cancel of the job that this request asks for again; it ends at once.

        Raises:
            JobError: it is refused; nothing has changed then.
        """
        if self.supervisor.state is EngineState.PERMANENTLY_FAILED:
            raise JobError(
                ErrorCode.ENGINE_LOST, "the engine cannot be started; see /health", http_status=503
            )
        submitted = self.dispatcher.submit(requests, correlation_id, self._now(), owner, retry_of=retry_of)
        streams = [JobStream(job) for job in submitted.jobs]
        self._idle.clear()
        for stream in streams:
            self._streams[stream.job.run] = self._followed[stream.job.run] = stream
            if self.tracing is not None:
                self.tracing.accepted(stream.job, headers, self.model)
        self._stop_first(submitted.effects, lambda: self._job_log.superseded(submitted.superseded))
        self._set_alarm()
        return streams

    async def measured(self, stream: JobStream, patience_sec: float) -> None:
        """Wait until a prompt is known to fit, but only while an engine can count it.

        Raises:
            JobError: `INVALID_REQUEST`, the prompt was refused in that time.
        """
        job = stream.job
        until = time.monotonic() + patience_sec
        while self.engine and job.live and job.prompt_tokens is None and time.monotonic() < until:
            await stream.changed(until - time.monotonic())
        terminal = job.terminal
        if isinstance(terminal, Error) and terminal.code is ErrorCode.INVALID_REQUEST:
            raise JobError(
                terminal.code,
                terminal.message,
                param=str(terminal.details.get("param") or "prompt"),
                openai_code=terminal.openai_code,
            )

    def cancel(self, job_id: str, correlation_id: str, owner: str = "") -> None:
        """Cancel a job for a client. Valid for any id, in any state."""
        known = self._stop(job_id, StopReason.CLIENT, correlation_id, owner)
        self.metrics.cancels.labels(known.value).inc()

    async def cancelled_lately(self, job_ids: list[str], owner: str) -> StopRequest | None:
        """A recent client's cancel of one of these jobs, after all of them that are being stopped have ended."""
        now = self._now()
        stops = [self.dispatcher.cancelled_lately(job_id, now, owner) for job_id in job_ids]
        stop = next((stop for stop in stops if stop is not None), None)
        if stop is not None:
            live = [job for job_id in job_ids if (job := self.dispatcher.tracker.live(job_id, owner))]
            stopping = [job.job_id for job in live if job.stop]
            await self.receipts(stopping, owner, self.policy.cancel_deadline_sec)
        return stop

    def refused(self, job_id: str, owner: str = "") -> None:
        """Note a refused request: a cancel of this id that follows is for that request."""
        self.dispatcher.refused(job_id, self._now(), owner)

    def cancel_group(self, group: str, correlation_id: str, owner: str = "") -> None:
        """Cancel all live jobs of a group for a client."""
        now = self._now()
        stop = StopRequest(StopReason.CLIENT, now.mono, correlation_id)
        states = {job.run: bool(job.stop) for job in self.dispatcher.tracker.in_group(group, owner)}
        jobs, effects = self.dispatcher.stop_group(group, stop, now, owner)

        def log() -> None:
            for job in jobs:
                known = TargetState.STOPPING if states[job.run] else TargetState.LIVE
                self._job_log.stop_requested(job.job_id, job, known, stop, group)
                self.metrics.cancels.labels(known.value).inc()
            if not jobs:
                self._job_log.stop_requested(None, None, TargetState.UNKNOWN, stop, group)
                self.metrics.cancels.labels(TargetState.UNKNOWN.value).inc()

        self._stop_first(effects, log)

    async def receipts(
        self, job_ids: list[str], owner: str, patience_sec: float
    ) -> list[dict[str, object]] | None:
        """Wait until these jobs have ended; None if one has not in that time.

        Returns:
            The records of those that were stopped: their receipts are in them.
        """
        tracker = self.dispatcher.tracker
        until = time.monotonic() + patience_sec
        # All are looked up before anything is waited for: an id may be used again meanwhile.
        asked = [(tracker.live(job_id, owner), tracker.record(job_id, owner)) for job_id in job_ids]
        for job, _ in asked:
            while job is not None and job.live:
                left = until - time.monotonic()
                if left <= 0:
                    return None
                await self._streams[job.run].changed(left)
        records = [ended if job is None else job.record() for job, ended in asked]
        return [record for record in records if record is not None and record["receipt"] is not None]

    def stream_of(self, job_id: str, owner: str = "") -> JobStream:
        """A job's stream, for one more reader; also of a job that has ended.

        Raises:
            JobError: `JOB_NOT_FOUND`, nothing of it is kept.
        """
        tracker = self.dispatcher.tracker
        live = tracker.live(job_id, owner)
        if live is not None:
            return self._streams[live.run]
        ended = tracker.ended_job(job_id, owner)
        if ended is not None:
            return self._followed.setdefault(ended.run, JobStream(ended))
        if tracker.ended(job_id, owner):
            raise JobError(ErrorCode.JOB_NOT_FOUND, "the job has ended and its events are no longer kept")
        raise JobError(ErrorCode.JOB_NOT_FOUND, "no job with this id is live or remembered")

    def reader_left(self, stream: JobStream) -> None:
        """The connection that executes a job is closed: stop the job, unless its `on_disconnect` is `continue`.

        A follower's leaving (`JobStream.leave`) stops nothing.
        """
        stream.leave()
        job = stream.job
        if not job.live:
            return
        if not job.stop:
            self._job_log.reader_left(job)
        if job.request.on_disconnect == "cancel":
            self.stop(job, StopReason.DISCONNECT)

    def stop(self, job: Job, reason: StopReason) -> None:
        """Stop this job, if it is still live."""
        if job.live:
            self._stop(job.job_id, reason, job.correlation_id, job.owner)

    def _stop(self, job_id: str, reason: StopReason, correlation_id: str, owner: str) -> TargetState:
        """Send a stop request of any origin through the dispatcher."""
        job = self.dispatcher.tracker.live(job_id, owner)
        now = self._now()
        stop = StopRequest(reason, now.mono, correlation_id)
        known, effects = self.dispatcher.stop(job_id, stop, now, owner)
        self._stop_first(effects, lambda: self._job_log.stop_requested(job_id, job, known, stop))
        return known

    def _stop_first(self, effects: list[Effect], log: Callable[[], None]) -> None:
        """Send stops to the engine, since each millisecond counts there; then log them; then do all else."""
        self._carry_out(effect for effect in effects if isinstance(effect, SendStop))
        log()
        self._carry_out(effect for effect in effects if not isinstance(effect, SendStop))

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
                self.kv_usage = KvUsage(message.cells_used, message.sequences_used, message.cells_cached)
                freed = Release(
                    stopped_at=now.mono - message.stopped_ago_ms / 1000,
                    freed_at=None if message.freed_ago_ms is None else now.mono - message.freed_ago_ms / 1000,
                    cells_before=message.cells_before,
                    cells_after=message.cells_after,
                    prompt_processed=message.prompt_processed,
                    prompt_cached=message.prompt_cached,
                    cells_warm=message.cells_warm,
                )
                self._carry_out(self.dispatcher.stopped(message.run, freed, now))
            case messages.Stored():
                self.prefix_store_bytes = message.bytes
            case messages.Prepared():
                self._carry_out(self.dispatcher.prepared(message.run, message.prompt, now))
                self._wake([message.run])
            case messages.Refused():
                code = ErrorCode.INVALID_REQUEST if message.param else ErrorCode.INTERNAL
                error = JobError(code, message.message, param=message.param)
                self._carry_out(self.dispatcher.failed(message.run, error, Release(now.mono, now.mono), now))
            case messages.AuditFault():
                self._job_log.audit_fault(message, self.dispatcher.tracker.by_run(message.run or 0))
                self.metrics.audit_faults.inc()
            case messages.NarrationEvent():
                self._job_log.forward(message)
            case messages.Loading():
                if not self.supervisor.ever_ready:
                    self._job_log.progress(message.percent)
            case messages.Ready():
                self._ready(message)

    def lost(self, death: Death) -> None:
        """The engine is dead."""
        now = self._now()
        self.engine = None
        self.kv_usage = KvUsage()
        self._lost_at = now.mono
        ended_as_asked = self.dispatcher.draining and not len(self.dispatcher.tracker)
        never_loaded = (
            self.supervisor.state is EngineState.PERMANENTLY_FAILED and not self.supervisor.ever_ready
        )
        if ended_as_asked or never_loaded:
            return  # No loss: it was closed, or `on_permanent_failure` says why it could not start.
        self._job_log.lost(death, self.dispatcher.queue.running)
        self._trace(self.dispatcher.queue.in_engine, "engine_lost")
        self._carry_out(self.dispatcher.engine_lost(death.why, now))

    def on_permanent_failure(self, reason: str, code: str) -> None:
        """No engine can be started any more: end every job."""
        now = self._now()
        self._job_log.permanently_failed(reason, code)
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
        self.model = ready.model
        self.model_names = self.model_names.with_name(ready.model)
        first = not self.ready.is_set()
        self.ready.set()
        if first or self._lost_at is None:
            self._job_log.loaded(ready)
        else:
            self._job_log.restarted(self.supervisor.pid, self.supervisor.restarts, self._lost_at)
        capacity = Capacity(ready.cells, ready.cells_per_job, ready.sequences)
        self._carry_out(self.dispatcher.engine_ready(ReadyEngine(capacity, ready.model), self._now()))

    def _step(self, step: messages.Step, now: Timestamp) -> None:
        """Handle the results of a step: the front's only work per token."""
        self.kv_usage = KvUsage(step.cells_used, step.sequences_used, step.cells_cached)
        self.metrics.steps.labels(step.outcome).inc()
        self.metrics.step_seconds.observe(step.duration_ms / 1000)
        if step.progress:
            cached = sum(progress.cached for progress in step.progress)
            self.metrics.prompt_tokens_computed(step.prompt_computed, cached)
        for scored in step.prompt_logprobs:
            if (job := self.dispatcher.tracker.by_run(scored.run)) is not None:
                job.prompt_logprobs[scored.first :] = scored.logprobs
        for progress in step.progress:
            self.dispatcher.progress(progress.run, progress.prompt_processed, progress.cached)
        self._wake(p.run for p in step.progress if self.dispatcher.report_progress(p.run, now))
        self.metrics.tokens.inc(sum(self._token(out, now) for out in step.tokens))
        effects: list[Effect] = []
        for end in step.ended:
            freed = Release(now.mono, now.mono, end.cells_before, end.cells_after, cells_warm=end.cells_warm)
            if end.reason is not None:
                effects += self.dispatcher.finished(end.run, end.reason, freed, now)
            else:
                error = JobError(ErrorCode(end.error_code or "INTERNAL"), end.error_message)
                effects += self.dispatcher.failed(end.run, error, freed, now)
        for run in step.preempted:
            self._preempted(run)
        if len(self.dispatcher.queue):
            effects += self.dispatcher.start_next(now)
        self._carry_out(effects)
        self._wake(out.run for out in step.tokens)

    def _preempted(self, run: int) -> None:
        job = self.dispatcher.tracker.by_run(run)
        self.dispatcher.preempted(run)
        self.metrics.preemptions.inc()
        self._trace([job] if job else [], "preempted")

    def _token(self, out: messages.TokenOut, now: Timestamp) -> bool:
        """Whether it is a token that became an event."""
        stream = self._streams.get(out.run)
        last_token_at = stream.job.last_token_at if stream else None
        job = self.dispatcher.token(out.run, out.token, out.text, now, out.held, out.logprobs)
        if job is None:
            return False
        if last_token_at is None:
            self.metrics.first_token_of(job)
            self._trace([job], "first_token")
        else:
            self.metrics.inter_token.observe(now.mono - last_token_at)
        return out.token is not None

    # What the core decided.

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Prepare(job):
                    self.supervisor.prepare(to_prepare(job))
                case DropPrompt(job):
                    self.supervisor.drop_prompt(job.run)
                case Run(job):
                    self.supervisor.run(to_run(job))
                    self._started(job)
                case SendStop(job):
                    self.supervisor.stop(job.run)
                case Ended(job):
                    self._ended(job)

    def _started(self, job: Job) -> None:
        self._wake([job.run])
        if not job.requeues:
            self.metrics.job_started(job)
        self._trace([job], "started")

    def _ended(self, job: Job) -> None:
        stream = self._streams.pop(job.run)
        stream.wake()
        self.metrics.job_ended(job)
        self._job_log.ended(job)
        if self.tracing is not None:
            self.tracing.ended(job, self.model)
        if not self._streams:
            self._idle.set()

    def _trace(self, jobs: Iterable[Job], what: str) -> None:
        if self.tracing is not None:
            now = self._now()
            for job in jobs:
                self.tracing.happened(job, what, now)

    def _wake(self, runs: Iterable[int]) -> None:
        for run in runs:
            stream = self._streams.get(run)
            if stream is not None:
                stream.wake()

    # Time.

    def _now(self) -> Timestamp:
        return Timestamp(time.monotonic(), time.time())

    def _set_alarm(self) -> None:
        """Wake up at the next deadline."""
        next_at = self.dispatcher.next_deadline()
        if next_at is None or next_at >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = next_at
        delay = max(0.0, next_at - time.monotonic())
        self._alarm = asyncio.get_running_loop().call_later(delay, self._on_deadline)

    def _on_deadline(self) -> None:
        self._alarm, self._alarm_at = None, float("inf")
        late, effects = self.dispatcher.expire(self._now())
        for job in late:
            self._job_log.timed_out(job)
        self._carry_out(effects)
        self._set_alarm()

    # The end.

    async def drain(self) -> None:
        """Accept no more jobs, let jobs finish for the drain time, stop the rest, and end the engine."""
        self.dispatcher.draining = True
        queue = self.dispatcher.queue
        self._job_log.draining(queue.running, len(queue), self.policy.drain_sec)
        if not await self._quiet(self.policy.drain_sec):
            now = self._now()
            self._carry_out(self.dispatcher.stop_all(StopRequest(StopReason.SHUTDOWN, now.mono), now))
            if not await self._quiet(SHUTDOWN_STOP_SEC):
                self.supervisor.kill("it does not stop its jobs at shutdown")
                if not await self._quiet(SHUTDOWN_STOP_SEC):
                    for job in self.dispatcher.tracker:
                        self.give_up(job.run)
        await self.supervisor.close()

    async def _quiet(self, timeout_sec: float) -> bool:
        try:
            async with asyncio.timeout(timeout_sec):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
