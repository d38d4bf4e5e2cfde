"""The interface of a worker for the HTTP layer. Implemented by one worker (`SingleWorker`) and by a fleet's router."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.protocol.messages import Ready, Template, Tokenized
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.worker.health import Health
from worker_orcd.worker.model_names import ModelNames
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.streams import JobStream

Record = dict[str, object]
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class WorkerInterface(Protocol):
    """Runs and stops jobs, and gives access to their records and streams.

    Methods that may have to query another process are coroutines; all others return values from memory.
    """

    @property
    def policy(self) -> Policy:
        """The operator's limits for jobs."""

    @property
    def started_unix(self) -> float:
        """When the worker was started, in Unix time."""

    @property
    def engine(self) -> Ready | None:
        """The model's facts from a running engine; None without one."""

    @property
    def model_names(self) -> ModelNames:
        """The names that clients may use for the model."""

    @property
    def recommended_sampling(self) -> Mapping[str, float]:
        """Values of a job's fields that the model's authors recommend."""

    @property
    def tool_formats(self) -> tuple[ToolFormat, ...]:
        """The model's formats of tool calls; empty: unknown."""

    async def execute(
        self,
        requests: Sequence[JobRequest],
        correlation_id: str,
        owner: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
        retry_of: StopRequest | None = None,
    ) -> list[JobStream]:
        """Accept the jobs of a client's request, all or none. Returns the streams of their events.

        Args:
            requests: the validated jobs.
            correlation_id: the request's correlation id.
            owner: the jobs' owner.
            headers: the request's headers, which may contain a trace id.
            retry_of: the client's cancel of a job that this request retries; then the new job ends at once.

        Raises:
            JobError: the request is refused; then nothing has changed.
        """

    async def cancel(self, job_id: str, correlation_id: str, owner: str = "") -> None:
        """Cancel a job for a client. Valid for any id, in any state."""

    async def cancel_group(self, group: str, correlation_id: str, owner: str = "") -> list[str]:
        """Cancel all live jobs of a group for a client. Returns their ids."""

    async def cancelled_lately(self, job_ids: list[str], owner: str) -> StopRequest | None:
        """A client's recent cancel of one of these jobs. Waits for the ends of those that are being stopped."""

    async def receipts(self, job_ids: list[str], owner: str, patience_sec: float) -> list[Record] | None:
        """Wait until these jobs have ended. Returns None if a job has not ended in time.

        Returns:
            The records of the stopped jobs, which contain their receipts.
        """

    async def record(self, job_id: str, owner: str) -> Record | None:
        """The record of the live job with this id, or else of the last ended one."""

    async def records(self, owner: str, limit: int) -> list[Record]:
        """An owner's records: live jobs, oldest first, then at most `limit` ended jobs, latest first."""

    async def stream_of(self, job_id: str, owner: str = "") -> JobStream:
        """The stream of a live or ended job, for a further reader.

        Raises:
            JobError: `JOB_NOT_FOUND`: the job's events are not kept.
        """

    async def drop_events(self, job: Job) -> None:
        """Drop the events of this job, if it is the last ended one with its id. Its record stays."""

    async def tokenize(self, prompt: str, template: Template, correlation_id: str, owner: str) -> Tokenized:
        """The tokens of a prompt, and the bytes that show each token.

        Raises:
            JobError: `INVALID_REQUEST`, `QUEUE_FULL`, or `ENGINE_LOST` (503) while no engine is ready.
        """

    def reader_left(self, stream: JobStream) -> None:
        """Handle the closed connection of a job's request: stop the job when its last reader has left, unless its
        `on_disconnect` is `continue`."""

    def follower_left(self, stream: JobStream) -> None:
        """Handle the closed connection of a follower, which may be the job's last reader."""

    def stop(self, job: Job, reason: StopReason) -> None:
        """Stop this job, if it is still live."""

    def refused(self, job_id: str, owner: str = "") -> None:
        """Note a refused request: a later cancel of this id is meant for that request."""

    def count_refusal(self, code: ErrorCode) -> None:
        """Count a refused request."""

    def health(self, *, operator: bool, private_load: bool) -> Health:
        """The current health. Paths, and with `private_load` load figures, are only for operators."""

    @property
    def permanently_failed(self) -> bool:
        """Whether no engine can be started any more."""

    async def metrics(self) -> bytes:
        """The body of `GET /metrics`."""
