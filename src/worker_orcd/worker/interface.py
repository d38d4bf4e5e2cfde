"""What the HTTP layer needs of a worker. One worker implements it (`SingleWorker`), and so does a fleet's router."""

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
    """Runs jobs, stops them, shows them, and lets clients follow them.

    Whatever may have to ask another process is a coroutine; everything else answers from memory.
    """

    @property
    def policy(self) -> Policy:
        """The operator's limits for jobs."""

    @property
    def started_unix(self) -> float:
        """When it was started, Unix time."""

    @property
    def engine(self) -> Ready | None:
        """What an engine that runs now has said of its model."""

    @property
    def model_names(self) -> ModelNames:
        """Names by which clients may ask for the model."""

    @property
    def recommended_sampling(self) -> Mapping[str, float]:
        """Fields of a job as the model's makers recommend them."""

    @property
    def tool_formats(self) -> tuple[ToolFormat, ...]:
        """How the model writes calls of tools; empty: unknown."""

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
            correlation_id: of the request.
            owner: of the jobs.
            headers: of the request; they may say which trace it is part of.
            retry_of: the client's cancel of the job that this request asks for again; it ends at once.

        Raises:
            JobError: it is refused; nothing has changed then.
        """

    async def cancel(self, job_id: str, correlation_id: str, owner: str = "") -> None:
        """Cancel a job for a client. Valid for any id, in any state."""

    async def cancel_group(self, group: str, correlation_id: str, owner: str = "") -> list[str]:
        """Cancel all live jobs of a group for a client. Returns their ids."""

    async def cancelled_lately(self, job_ids: list[str], owner: str) -> StopRequest | None:
        """A recent client's cancel of one of these jobs, after all of them that are being stopped have ended."""

    async def receipts(self, job_ids: list[str], owner: str, patience_sec: float) -> list[Record] | None:
        """Wait until these jobs have ended; None if one has not in that time.

        Returns:
            The records of those that were stopped: their receipts are in them.
        """

    async def record(self, job_id: str, owner: str) -> Record | None:
        """The record of the live job with this id, or else of the last one that ended."""

    async def records(self, owner: str, limit: int) -> list[Record]:
        """An owner's records: live jobs oldest first, then ended ones, latest first, at most `limit` of these."""

    async def stream_of(self, job_id: str, owner: str = "") -> JobStream:
        """A job's stream, for one more reader; also of a job that has ended.

        Raises:
            JobError: `JOB_NOT_FOUND`, nothing of it is kept.
        """

    async def drop_events(self, job: Job) -> None:
        """Keep the events of this job no longer, if it is the last one with its id that ended. Its record stays."""

    async def tokenize(self, prompt: str, template: Template, correlation_id: str, owner: str) -> Tokenized:
        """The tokens of a prompt, and how each is shown.

        Raises:
            JobError: `INVALID_REQUEST`, `QUEUE_FULL`, or `ENGINE_LOST` (503) while there is no engine that answers.
        """

    def reader_left(self, stream: JobStream) -> None:
        """The connection that executes a job is closed: stop the job, unless its `on_disconnect` is `continue`."""

    def stop(self, job: Job, reason: StopReason) -> None:
        """Stop this job, if it is still live."""

    def refused(self, job_id: str, owner: str = "") -> None:
        """Note a refused request: a cancel of this id that follows is for that request."""

    def count_refusal(self, code: ErrorCode) -> None:
        """Count a request that was refused."""

    def health(self, *, operator: bool, private_load: bool) -> Health:
        """Health now. Only operators see paths in it, and with `private_load` only they see load figures."""

    @property
    def permanently_failed(self) -> bool:
        """Whether no engine can be started any more."""

    async def metrics(self) -> bytes:
        """The body of `GET /metrics`."""
