"""The closed catalogue of log events (M0-W-1900).

Each action is a frozen class with the event's fields and its `sentences` for people. The documentation is generated
from the classes, mypy checks each use of them, and `Narrator.emit` refuses any other object. To add an action, write
its class and add it to `Action`. In an event without a tenant, tenants do not see fields that are marked `OPERATORS`.

Milliseconds are numbers with a fraction. A field whose default is None is left out of the event while it is None. A
field that may be None and has no default is always present.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Final, Literal, Self, get_args

from worker_orcd.narration.action import (
    ALWAYS,
    OPERATORS,
    BaseAction,
    JobAction,
    Sentence,
    WorkerAction,
)
from worker_orcd.narration.fleet_actions import Route, WorkerLost
from worker_orcd.narration.text import frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup(WorkerAction):
    """The settings are valid; nothing is loaded yet."""

    name: ClassVar = "startup"
    sentences: ClassVar = {
        "closed": Sentence("INFO", "Worker {version} is starting on {host}:{port} with model {model}"),
        "open to everybody": Sentence(
            "WARN", "Worker {version} is starting on {host}:{port}, open to everybody"
        ),
        "open key files": Sentence(
            "WARN", "Worker {version} is starting; every user of this machine can read {open_key_files}"
        ),
    }
    for_tenants: ClassVar = "Worker {version} is starting on {host}:{port}"

    version: Annotated[str, "of worker-orcd"]
    host: Annotated[str, "the address it listens on"]
    port: Annotated[int, "the port it listens on"]
    model: Annotated[str, "the model's name or path", OPERATORS]
    device: Annotated[str, "the device for the model: `cpu` or `gpu N`"]
    parallel: Annotated[int, "sequences decoded together"]
    context_length: Annotated[int, "KV cells shared by all sequences"]
    exact: Annotated[bool, "whether byte-identical streams are required"]
    max_queue: Annotated[int, "the most jobs that may wait"]
    inference_timeout_sec: Annotated[float, "s that a job may take, waiting included"]
    api_keys: Annotated[
        int, "number of API keys, operators' included; 0: open to all clients that reach it", OPERATORS
    ]
    open_key_files: Annotated[
        str | None, "key files that every user of this machine can read, if any", OPERATORS
    ] = None
    insecure: Annotated[bool, "whether other machines may reach it without keys"] = False

    def variant(self) -> str:
        """Depends on who may use the worker."""
        if self.open_key_files is not None:
            return "open key files"
        return "open to everybody" if self.insecure else "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoadStart(WorkerAction):
    """The engine process begins to load the model."""

    name: ClassVar = "model_load_start"
    acts_on: ClassVar = "model"
    sentences: ClassVar = {ALWAYS: Sentence("INFO", "Loading model {path}")}
    for_tenants: ClassVar = "Loading the model"

    path: Annotated[str, "the model file", OPERATORS]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoadProgress(WorkerAction):
    """Loading passed 0, 25, 50, 75 or 100 percent."""

    name: ClassVar = "model_load_progress"
    acts_on: ClassVar = "model"
    sentences: ClassVar = {ALWAYS: Sentence("INFO", "Loading model {path}: {percent} %")}
    for_tenants: ClassVar = "Loading the model: {percent} %"

    path: Annotated[str, "the model file", OPERATORS]
    percent: Annotated[Literal[0, 25, 50, 75, 100], "of the model loaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoadComplete(WorkerAction):
    """The model and its tokenizer are loaded."""

    name: ClassVar = "model_load_complete"
    acts_on: ClassVar = "model"
    sentences: ClassVar = {ALWAYS: Sentence("INFO", "Model {path} is loaded on {device} after {load_ms} ms")}
    for_tenants: ClassVar = "The model is loaded on {device} after {load_ms} ms"

    path: Annotated[str, "the model file", OPERATORS]
    load_ms: Annotated[float, "ms from the start of loading"]
    device: Annotated[str, "the model's device: `cpu` or `gpu N`"]
    context_length: Annotated[int, "tokens that one job can have, prompt and output together"]
    cells: Annotated[int, "total number of KV cells"]
    vocab_size: Annotated[int, "tokens in the vocabulary"]
    exact: Annotated[bool, "whether the self-check found streams to be byte-identical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(WorkerAction):
    """The worker accepts jobs, and they make progress."""

    name: ClassVar = "ready"
    sentences: ClassVar = {ALWAYS: Sentence("INFO", "Worker is ready on {host}:{port}")}

    host: Annotated[str, "the address it listens on"]
    port: Annotated[int, "the port it listens on"]
    startup_ms: Annotated[float, "ms from the start of the process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(WorkerAction):
    """The worker shuts down: it accepts no new jobs, and running jobs may finish until the drain time is over."""

    name: ClassVar = "drain"
    sentences: ClassVar = {
        ALWAYS: Sentence(
            "INFO", "Draining: {jobs_running} running and {jobs_queued} queued jobs have {drain_sec} s to end"
        ),
    }
    for_tenants: ClassVar = "Draining: running and queued jobs have {drain_sec} s to end"

    jobs_running: Annotated[int, "jobs in the engine", OPERATORS]
    jobs_queued: Annotated[int, "jobs waiting", OPERATORS]
    drain_sec: Annotated[float, "s until jobs that still run are cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown(WorkerAction):
    """The last event of a worker."""

    name: ClassVar = "shutdown"
    sentences: ClassVar = {ALWAYS: Sentence("INFO", "Worker is shutting down: {reason}")}

    reason: Annotated[str, "the cause: `SIGTERM`, `SIGINT`, `POST /shutdown`, or the failure that ended it"]
    uptime_s: Annotated[float, "s since the process started"]
    exit_code: Annotated[int, "the exit code of the process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuteStart(JobAction):
    """The engine starts a job. The event contains only the prompt's length and SHA-256 (`prompt_digest`)."""

    name: ClassVar = "execute_start"
    sentences: ClassVar = {ALWAYS: Sentence("INFO", "Starting job {job_id}")}

    prompt_chars: Annotated[int, "characters of the prompt as sent"]
    prompt_sha256: Annotated[str, "SHA-256 of the prompt as sent, in hex"]
    prompt_tokens: Annotated[int | None, "tokens of the rendered prompt, once known"] = None
    max_tokens: Annotated[int, "tokens the job may generate"]
    seed: Annotated[int, "the client's seed or a random one; unsigned 64-bit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuteEnd(JobAction):
    """A job reached its natural end; its memory is free and its terminal event is written."""

    name: ClassVar = "execute_end"
    sentences: ClassVar = {
        ALWAYS: Sentence("INFO", "Job {job_id} ends after {tokens_out} tokens: {stop_reason}"),
    }

    tokens_out: Annotated[int, "tokens generated"]
    decode_time_ms: Annotated[float, "ms from the job's first token to its last"]
    stop_reason: Annotated[str, "`stop`, `length` or `stop_sequence`"]
    queue_ms: Annotated[float, "ms from acceptance to the start in the engine"]
    first_token_ms: Annotated[float | None, "ms from acceptance to the first token, if any"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(BaseAction):
    """A stop was requested. `cancel_complete` reports its effect."""

    name: ClassVar = "cancel"
    acts_on: ClassVar = "job:{job_id} or group:{group}"
    sentences: ClassVar = {
        "live": Sentence("INFO", "Cancelling job {job_id}"),
        "unknown": Sentence("WARN", "Cancel requested for unknown job {job_id}"),
        "finished": Sentence("WARN", "Cancel requested for finished job {job_id}"),
        "no live job in the group": Sentence("WARN", "Cancel requested for group {group} without live jobs"),
    }

    job_id: Annotated[str | None, "the job; missing only for a group without live jobs"] = None
    known: Annotated[Literal["live", "finished", "unknown"], "the state of the job"]
    reason: Annotated[str, "`client`, `disconnect`, `shutdown` or `superseded`"]
    phase: Annotated[str | None, "a live job's `queued`, `loading`, `prefill` or `decode`"] = None
    repeated: Annotated[bool, "true if the job was already being stopped, so that nothing changes"] = False
    group: Annotated[str | None, "the cancelled group, if any"] = None
    superseded_by: Annotated[str | None, "the newer job, if the reason is `superseded`"] = None

    def variant(self) -> str:
        """Depends on the state of the job."""
        return "no live job in the group" if self.job_id is None else self.known

    def target(self) -> str:
        """Return the job, or the group without live jobs."""
        return f"group:{self.group}" if self.job_id is None else f"job:{self.job_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelComplete(JobAction):
    """A stopped job's terminal event is written. This event is the receipt. All times count from the accepted stop
    request.

    The event's `correlation_id` is the job's own.
    """

    name: ClassVar = "cancel_complete"
    sentences: ClassVar = {
        "freed": Sentence("INFO", "Job {job_id} cancelled successfully"),
        "at its time limit": Sentence("INFO", "Job {job_id} is stopped at its time limit"),
        "not confirmed": Sentence("WARN", "Job {job_id} ends as CANCELLED; its memory is not confirmed free"),
    }

    reason: Annotated[str, "of the first stop: `client`, `disconnect`, `shutdown`, `superseded` or `timeout`"]
    phase: Annotated[str, "at the stop request: `queued`, `loading`, `prefill` or `decode`"]
    stopped_ms: Annotated[float | None, "ms until computing stopped; null if not confirmed"]
    freed_ms: Annotated[float | None, "ms until its memory was freed; null if not confirmed"]
    terminal_ms: Annotated[float, "ms until the terminal event was written"]
    prompt_tokens: Annotated[int | None, "prompt tokens processed"] = None
    tokens_out: Annotated[int, "tokens generated"]
    cells_before: Annotated[int, "KV cells held at the stop request"]
    cells_after: Annotated[int | None, "KV cells held at the end; null if not confirmed"]
    cancel_correlation_id: Annotated[str | None, "correlation id of the cancel request"] = None

    def variant(self) -> str:
        """Depends on whether the stop is confirmed, then on its reason."""
        if self.freed_ms is None:
            return "not confirmed"
        return "at its time limit" if self.reason == "timeout" else "freed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout(JobAction):
    """A job's time limit has passed. The job is stopped like a cancelled one."""

    name: ClassVar = "timeout"
    sentences: ClassVar = {ALWAYS: Sentence("WARN", "Job {job_id} exceeds its time limit of {timeout_ms} ms")}

    timeout_ms: Annotated[int, "the time limit in ms, waiting included"]
    phase: Annotated[str, "`queued`, `loading`, `prefill` or `decode`"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect(JobAction):
    """The last reader of a job disconnected."""

    name: ClassVar = "disconnect"
    sentences: ClassVar = {
        "cancel": Sentence("INFO", "Last reader of job {job_id} leaves: the job is cancelled"),
        "continue": Sentence("INFO", "Last reader of job {job_id} leaves: the job continues"),
    }

    phase: Annotated[str, "`queued`, `loading`, `prefill` or `decode`"]
    on_disconnect: Annotated[Literal["cancel", "continue"], "the job's setting"] = "cancel"

    def variant(self) -> str:
        """Depends on whether the job continues."""
        return self.on_disconnect


@dataclass(frozen=True, slots=True, kw_only=True)
class Error(BaseAction):
    """A request or a job was refused (WARN), or a job or the worker failed (ERROR)."""

    name: ClassVar = "error"
    acts_on: ClassVar = "job:{job_id}, otherwise request or worker"
    sentences: ClassVar = {
        "refused": Sentence("WARN", "Refusing a request with {code}: {message}"),
        "unfit": Sentence("WARN", "Refusing job {job_id} with {code}: {message}"),
        "job": Sentence("ERROR", "Job {job_id} fails with {code}: {message}"),
        "worker": Sentence("ERROR", "Worker reports {code}: {message}"),
    }
    for_tenants: ClassVar = "Worker reports {code}"

    code: Annotated[str, "the error code"]
    message: Annotated[str, "message for the client or operator; never prompt or output", OPERATORS]
    job_id: Annotated[str | None, "the job, if any"] = None
    http_status: Annotated[int | None, "the response's status; missing for a failure within a stream"] = None
    param: Annotated[str | None, "the request's faulty field"] = None
    exception_type: Annotated[str | None, "qualified name of the exception", OPERATORS] = None
    traceback: Annotated[
        str | None, "where it was raised; without messages, which may quote a prompt", OPERATORS
    ] = None

    @classmethod
    def from_exception(
        cls,
        exception: BaseException,
        *,
        code: str,
        message: str,
        job_id: str | None = None,
        http_status: int | None = None,
    ) -> Self:
        """An event with the place where `exception` was raised, without its message, which may quote a prompt."""
        raised = type(exception)
        return cls(
            code=code,
            message=message,
            job_id=job_id,
            http_status=http_status,
            exception_type=f"{raised.__module__}.{raised.__qualname__}",
            traceback=frames(exception),
        )

    def variant(self) -> str:
        """Depends on who must act: the client or the operator."""
        # 503 is DRAINING, which is not a failure.
        if self.http_status is not None and (self.http_status < 500 or self.http_status == 503):
            return "refused"
        if self.job_id is None:
            return "worker"
        return "unfit" if self.code == "INVALID_REQUEST" else "job"

    def target(self) -> str:
        """Return the job, otherwise the request or the worker."""
        if self.job_id is not None:
            return f"job:{self.job_id}"
        return "worker" if self.http_status is None else "request"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost(WorkerAction):
    """The engine process died or was killed."""

    name: ClassVar = "engine_lost"
    acts_on: ClassVar = "engine"
    sentences: ClassVar = {ALWAYS: Sentence("ERROR", "Engine process {engine_pid} is lost: {why}")}
    for_tenants: ClassVar = "The engine is lost and is being restarted"

    engine_pid: Annotated[int, "process id of the lost engine", OPERATORS]
    why: Annotated[str, "how it ended, or why it was killed", OPERATORS]
    exit_code: Annotated[int | None, "the exit code, if it exited", OPERATORS] = None
    signal: Annotated[str | None, "name of the signal that ended it, for example `SIGKILL`", OPERATORS] = None
    jobs_running: Annotated[int, "jobs that were running in it and now wait for the next engine", OPERATORS]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRestarted(WorkerAction):
    """A new engine process has loaded the model and accepts jobs."""

    name: ClassVar = "engine_restarted"
    acts_on: ClassVar = "engine"
    sentences: ClassVar = {
        ALWAYS: Sentence("INFO", "Engine is back as process {engine_pid} after {ready_ms} ms"),
    }
    for_tenants: ClassVar = "The engine is back after {ready_ms} ms"

    engine_pid: Annotated[int, "process id of the new engine", OPERATORS]
    restarts: Annotated[int, "number of restarts since the worker started"]
    ready_ms: Annotated[float, "ms from the loss of the old engine"]


Action = (
    Startup
    | ModelLoadStart
    | ModelLoadProgress
    | ModelLoadComplete
    | Ready
    | Route
    | ExecuteStart
    | ExecuteEnd
    | Cancel
    | CancelComplete
    | Timeout
    | Disconnect
    | Error
    | EngineLost
    | EngineRestarted
    | WorkerLost
    | Drain
    | Shutdown
)

ACTIONS: Final[tuple[type[Action], ...]] = get_args(Action)
"""All actions, in the documented order."""

FIELDS: Final[Mapping[type[Action], Mapping[str, bool]]] = {
    action: {field.name: field.default is None for field in fields(action)} for action in ACTIONS
}
"""By action: its field names, and whether a field is left out while it is None."""
