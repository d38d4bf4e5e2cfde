"""One job: one use of a job id, from acceptance to its terminal event."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from worker_orcd.jobs.clock import Timestamp, millis, rfc3339
from worker_orcd.jobs.errors import ErrorCode, JobError, traceable
from worker_orcd.jobs.events import (
    LOGPROB_BYTES,
    End,
    EndedEvents,
    Error,
    Event,
    Progress,
    Started,
    StopReason as EndReason,
    Terminal,
    Token,
)
from worker_orcd.jobs.lifecycle import State, Trigger, following
from worker_orcd.jobs.position import Position
from worker_orcd.jobs.priority import handicap_sec
from worker_orcd.jobs.receipt import Receipt, Release
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import STOP_MESSAGES, StopReason, StopRequest
from worker_orcd.sampling import Logprobs


class Phase(StrEnum):
    """What a live job waits for or does."""

    QUEUED = "queued"
    LOADING = "loading"
    PREFILL = "prefill"
    DECODE = "decode"


JobKey = tuple[str, str]
"""Owner and job id. Equal ids of two owners are different jobs."""

PROGRESS_EVERY_SEC = 0.25
"""Minimum time between two `progress` events of a job."""


@dataclass(eq=False, slots=True)
class Job:
    """The state of one job. Times are seconds of the front's monotonic clock.

    It contains everything that another engine needs to continue the job: prompt tokens, parameters, seed and the tokens
    so far. `run` identifies this use of the job id for the engine, and `incarnation` for clients, so that no message
    for one use of an id can affect another use.

    Each method under "Transitions" is one row of the lifecycle table. It raises IllegalTransition, and leaves the job
    unchanged, if the table does not have that row.
    """

    request: JobRequest
    run: int
    correlation_id: str
    seed: int
    timeout_sec: float
    accepted: Timestamp
    owner: str = ""
    """The owner: an API key's name, or "" without keys."""
    incarnation: str = ""
    """Unique for each use of a job id, also across restarts of the worker. The first part of its events' ids."""
    waits_since: float = 0.0
    """Its place in the queue: the time of its acceptance, or that of the first job that it superseded."""
    state: State = State.QUEUED
    stop: StopRequest | None = None
    """The first stop request; later ones do not count."""
    phase: Phase = Phase.LOADING
    """What the job waits for or does. Does not change after its stop or end."""
    prompt_tokens: tuple[int, ...] | None = None
    """The prompt's token ids, once the engine has counted them."""
    prompt_length: int | None = None
    """Their number, which is kept when the ids are dropped."""
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    """Log probabilities of the prompt tokens scored so far, if the request asks for them."""
    deaths: int = 0
    """Engine deaths while the engine held this job, since its last token."""
    requeues: int = 0
    """How often it was requeued after its start."""
    max_tokens: int = 0
    """The most tokens that it may generate, once its prompt is counted."""
    prompt_processed: int = 0
    prompt_cached: int = 0
    """Number of prompt tokens reused at the job's first start."""
    tokens: list[int] = field(default_factory=list)
    """Ids of the tokens sent so far."""
    tokens_out: int = 0
    """Their number, which is kept when the ids are dropped."""
    held: str = ""
    """Text of these tokens that the engine holds back, because a stop sequence may begin with it."""
    _events: list[Event] = field(default_factory=list)
    _ended_events: EndedEvents | None = None
    started_at: float | None = None
    progress_at: float | None = None
    """Time of the latest `progress` event."""
    first_token_at: float | None = None
    last_token_at: float | None = None
    ended_at: float | None = None
    receipt: Receipt | None = None
    embedding: bytes = b""
    """The prompt's embedding as 32-bit floats, if requested. Only for the request's own response: ended jobs are kept
    without it (`JobRequest.stored`)."""

    @property
    def job_id(self) -> str:
        """The job's id, which the client chose."""
        return self.request.job_id

    @property
    def events(self) -> Sequence[Event]:
        """The job's events in order. An event's index is the number in its id."""
        return self._events if self._ended_events is None else self._ended_events

    def place_after(self, seen: Position | None) -> int:
        """The number of the first event after `seen`, the last position that a reader has received.

        Raises:
            JobError: `JOB_NOT_FOUND`: the position belongs to another use of the job id.
        """
        if seen is None:
            return 0
        if seen.incarnation != self.incarnation:
            raise JobError(
                ErrorCode.JOB_NOT_FOUND, "this position belongs to another job with the same job_id"
            )
        return seen.number + 1

    @property
    def deadline(self) -> float:
        """When the job times out; time in the queue counts."""
        return self.accepted.mono + self.timeout_sec

    @property
    def live(self) -> bool:
        """Whether the job has no terminal event yet."""
        return self.state is not State.ENDED

    @property
    def terminal(self) -> Terminal | None:
        """The terminal event, once decided."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, End | Error) else None

    @property
    def key(self) -> JobKey:
        """Owner and job id."""
        return self.owner, self.job_id

    @property
    def precedence(self) -> tuple[float, str]:
        """Of jobs that supersede each other, the last one stays. Equal for the jobs of one request. In a fleet, it is
        the same at each worker, unlike the order in which jobs come there."""
        return self.accepted.unix, self.correlation_id

    @property
    def order(self) -> tuple[float, int]:
        """Sort key of jobs: the lowest is the next to run, and the last to be preempted."""
        return self.waits_since + handicap_sec(self.request.priority), self.run

    def may_preempt(self, other: "Job") -> bool:
        """Whether `other` may be preempted for this job: it is less urgent, even counting the time it has waited."""
        return self.request.priority < other.request.priority and self.order < other.order

    @property
    def in_slot(self) -> bool:
        """Whether the engine has given it a slot. For a job that is being stopped: whether it had one at the stop."""
        return self.live and self.phase in (Phase.PREFILL, Phase.DECODE)

    @property
    def cells_held(self) -> int:
        """Number of KV cells that the job holds, as reported by the engine. Its newest token has no cell yet."""
        return self.prompt_processed + max(0, self.tokens_out - 1) if self.in_slot else 0

    @property
    def decode_time_ms(self) -> float:
        """Milliseconds from its first token to its last."""
        if self.first_token_at is None or self.last_token_at is None:
            return 0.0
        return millis(self.first_token_at, self.last_token_at)

    def take_place_of(self, superseded: Sequence["Job"]) -> None:
        """Take over the place in the queue of the oldest of these jobs. A place can be passed on only for the time
        limit of one job; otherwise a chain of jobs would keep others waiting forever."""
        now = self.accepted.mono
        kept = [old.waits_since for old in superseded if now - old.waits_since < self.timeout_sec]
        self.waits_since = min(kept, default=now)

    # Transitions.

    def measured(self, prompt_tokens: tuple[int, ...], max_tokens: int) -> None:
        """The engine has counted the prompt's tokens, and the job fits."""
        self.deaths = 0
        self.prompt_tokens = prompt_tokens
        self.prompt_length = len(prompt_tokens)
        self.max_tokens = max_tokens

    def handed_over(self) -> None:
        """The job is handed to the engine."""
        self.state = following(self.state, Trigger.HAND_OVER)

    def started(self, now: Timestamp, model: str) -> bool:
        """The engine gives the job a slot. The first time, `started` is added to the events.

        Returns:
            Whether the job runs now. A job that is being stopped does not.
        """
        self.state = following(self.state, Trigger.START)
        if self.state is State.STOPPING:
            return False
        self.phase = Phase.PREFILL
        if self.started_at is None:
            self.started_at = now.mono
            self._events.append(Started(self.job_id, model, rfc3339(now.unix), self.seed))
        return True

    def token(
        self, now: Timestamp, token: int | None, text: str, held: str = "", logprobs: Logprobs = ()
    ) -> bool:
        """Add a token (None: only text that was held back), and set the text that is held back now.

        Returns:
            Whether the token became an event. Tokens that arrive after a stop request do not.
        """
        self.state = following(self.state, Trigger.TOKEN)
        if self.state is State.STOPPING:
            return False
        if self.first_token_at is None:
            self.first_token_at = now.mono
        self.phase = Phase.DECODE
        self.deaths = 0
        self.last_token_at = now.mono
        self._events.append(Token(text, self.tokens_out, logprobs))
        self.held = held
        if token is not None:
            self.tokens.append(token)
            self.tokens_out += 1
        return True

    def request_stop(self, stop: StopRequest) -> bool:
        """Request a stop. A queued job ends at once; a job in the engine waits for the engine's confirmation.

        Returns:
            Whether this stop request is the first, so that it counts.
        """
        if self.state is State.QUEUED:
            self.stop = stop
            now = stop.accepted_at
            self._end(Trigger.STOP, now, Release(stopped_at=now, freed_at=now))
            return True
        self.state = following(self.state, Trigger.STOP)
        if not self.live or self.stop is not None:
            return False
        self.stop = stop
        return True

    def in_cells(self, prompt_processed: int, cached: int) -> None:
        """Set how many prompt tokens are in KV cells, and how many of them were reused at the start.

        Cells that a requeued job has computed itself before do not count as cached.
        """
        if self.prompt_processed == 0:
            self.prompt_cached = cached
        self.prompt_processed = max(self.prompt_processed, prompt_processed)

    def report_progress(self, now: Timestamp) -> bool:
        """Add a `progress` event, if the request asks for them and the last one is not too recent.

        Returns:
            Whether an event was added.
        """
        reports = self.request.progress and self.state is State.RUNNING and self.first_token_at is None
        if not reports or self.started_at is None or self.prompt_length is None:
            return False
        if self.progress_at is not None and now.mono - self.progress_at < PROGRESS_EVERY_SEC:
            return False
        self.progress_at = now.mono
        time_ms = millis(self.started_at, now.mono)
        self._events.append(Progress(self.prompt_length, self.prompt_processed, self.prompt_cached, time_ms))
        return True

    def stopped(self, now: Timestamp, freed: Release) -> None:
        """The engine confirms the stop: it computes and holds nothing for the job."""
        self._end(Trigger.STOPPED, now.mono, freed)

    def finished(self, now: Timestamp, reason: EndReason, freed: Release, embedding: bytes = b"") -> None:
        """The engine reports the job's natural end."""
        self.embedding = embedding
        end = End(self.tokens_out, round(self.decode_time_ms), reason)
        self._end(Trigger.FINISH, now.mono, freed, end)

    def failed(self, now: Timestamp, error: JobError, freed: Release) -> None:
        """The job has failed and cannot continue."""
        at_fault = {} if error.param is None else {"param": error.param}
        message = traceable(error.code, error.message, self.correlation_id)
        failed = self._error(error.code, message, **at_fault)
        self._end(Trigger.FAIL, now.mono, freed, replace(failed, openai_code=error.openai_code))

    def engine_lost(self, now: Timestamp) -> None:
        """The engine is dead. A job that was being stopped has stopped; any other job waits for the next engine."""
        state = following(self.state, Trigger.ENGINE_LOST)
        if state is State.ENDED:
            freed = Release(now.mono, now.mono, self.cells_held, prompt_processed=self.prompt_processed)
            self._end(Trigger.ENGINE_LOST, now.mono, freed)
            return
        if self.state is State.RUNNING:
            self.requeues += 1
        self.state = state

    def preempted(self) -> None:
        """The engine has preempted the job. It waits again, unless it is being stopped."""
        if self.state is State.RUNNING:
            self.requeues += 1
        self.state = following(self.state, Trigger.PREEMPT)

    def returned(self) -> None:
        """The engine has returned the job. It waits in the front's queue, unless it is being stopped."""
        self.state = following(self.state, Trigger.RETURN)

    def give_up(self, now: Timestamp) -> None:
        """Write the terminal event without a confirmation, because not even the engine's death was confirmed in
        time."""
        freed = Release(now.mono, None, self.cells_held, None, self.prompt_processed)
        self._end(Trigger.GIVE_UP, now.mono, freed)

    def _end(self, trigger: Trigger, now: float, freed: Release, otherwise: Terminal | None = None) -> None:
        """Decide the terminal event. The first stop request takes precedence over any other end."""
        state = following(self.state, trigger)
        stop = self.stop
        self.in_cells(freed.prompt_processed, freed.prompt_cached)
        if self.held:
            # No token follows that could complete a stop sequence, so the text is final.
            self._events.append(Token(self.held, self.tokens_out))
            self.held = ""
        if stop is not None:
            self._events.append(self._stopped_by(stop))
            self.receipt = self._receipt(stop, freed, terminal_at=now)
        elif otherwise is not None:
            self._events.append(otherwise)
        else:  # Without a stop request, only triggers with their own terminal event end a job.
            raise AssertionError(f"{trigger} ended a job without a stop request")
        self.state = state
        self.ended_at = now

    def _stopped_by(self, stop: StopRequest) -> Error:
        if stop.reason is StopReason.TIMEOUT:
            message = f"Job took longer than {round(self.timeout_sec * 1000)} ms"
            return self._error(ErrorCode.INFERENCE_TIMEOUT, message)
        return self._error(ErrorCode.CANCELLED, STOP_MESSAGES[stop.reason], reason=stop.reason.value)

    def _error(self, code: ErrorCode, message: str, **details: object) -> Error:
        usage = {
            "phase": self.phase.value,
            "prompt_tokens": self.prompt_processed,
            "tokens_out": self.tokens_out,
        }
        return Error(code, message, details | usage)

    def _receipt(self, stop: StopRequest, freed: Release, terminal_at: float) -> Receipt:
        asked = stop.accepted_at
        return Receipt(
            reason=stop.reason,
            phase=self.phase,
            stopped_ms=millis(asked, freed.stopped_at),
            freed_ms=None if freed.freed_at is None else millis(asked, freed.freed_at),
            terminal_ms=millis(asked, terminal_at),
            prompt_tokens=self.prompt_processed,
            prompt_tokens_cached=self.prompt_cached,
            tokens_out=self.tokens_out,
            kv_cells_before=freed.cells_before,
            kv_cells_after=freed.cells_after,
            kv_cells_warm=freed.cells_warm,
            cancel_correlation_id=stop.correlation_id,
        )

    def add_copied_events(self, events: Sequence[Event]) -> None:
        """Add events of the job of which this is a copy (`replication`)."""
        self._events += events

    def drop_run_data(self) -> None:
        """Drop the data that only a requeue needs, once the job has ended. Record and events stay, in less memory."""
        self.request = self.request.without_prompt()
        self.prompt_tokens = None
        self.tokens = []
        self._ended_events = EndedEvents(self._events)
        self._events = []

    @property
    def kept_bytes(self) -> int:
        """Number of bytes kept after the end, without a constant."""
        said = 0 if self._ended_events is None else self._ended_events.size
        scored = LOGPROB_BYTES * sum(map(len, self.prompt_logprobs))
        return said + scored + self.request.kept_bytes
