"""One worker in this process, as the HTTP layer uses it."""

import time
from collections.abc import Mapping, Sequence

from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.protocol.messages import Ready, Template, Tokenized
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.worker.health import Health, health_of
from worker_orcd.worker.interface import NO_HEADERS, Record, WorkerInterface
from worker_orcd.worker.model_names import ModelNames
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.streams import JobStream
from worker_orcd.worker.worker import Worker


class SingleWorker(WorkerInterface):
    """Delegates to the worker. Waits only for the ends of jobs and for tokens."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tracker = worker.dispatcher.tracker

    @property
    def policy(self) -> Policy:
        """The operator's limits for jobs."""
        return self._worker.policy

    @property
    def started_unix(self) -> float:
        """When the worker was started, in Unix time."""
        return self._worker.started_unix

    @property
    def engine(self) -> Ready | None:
        """The model's facts from the running engine; None without one."""
        return self._worker.engine

    @property
    def model_names(self) -> ModelNames:
        """The names that clients may use for the model."""
        return self._worker.model_names

    @property
    def recommended_sampling(self) -> Mapping[str, float]:
        """Values of a job's fields that the model's authors recommend."""
        return self._worker.recommended_sampling

    @property
    def tool_formats(self) -> tuple[ToolFormat, ...]:
        """The model's formats of tool calls; empty: unknown."""
        return self._worker.tool_formats

    async def execute(
        self,
        requests: Sequence[JobRequest],
        correlation_id: str,
        owner: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
        retry_of: StopRequest | None = None,
    ) -> list[JobStream]:
        """Accept jobs."""
        return self._worker.execute(requests, correlation_id, owner, headers, retry_of)

    async def cancel(self, job_id: str, correlation_id: str, owner: str = "") -> None:
        """Cancel a job."""
        self._worker.cancel(job_id, correlation_id, owner)

    async def cancel_group(self, group: str, correlation_id: str, owner: str = "") -> list[str]:
        """Cancel the live jobs of a group. Returns their ids."""
        live = [job.job_id for job in self._tracker.in_group(group, owner)]
        self._worker.cancel_group(group, correlation_id, owner)
        return live

    async def cancelled_lately(self, job_ids: list[str], owner: str) -> StopRequest | None:
        """A recent client's cancel of one of these jobs, after all of them that are being stopped have ended."""
        stop = self._worker.cancelled_lately(job_ids, owner)
        if stop is not None:
            live = [job for job_id in job_ids if (job := self._tracker.live(job_id, owner))]
            stopping = [job.job_id for job in live if job.stop]
            await self.receipts(stopping, owner, self.policy.cancel_deadline_sec)
        return stop

    async def receipts(self, job_ids: list[str], owner: str, patience_sec: float) -> list[Record] | None:
        """Wait until these jobs have ended; None if one has not in that time.

        Returns:
            The records of those that were stopped.
        """
        until = time.monotonic() + patience_sec
        # All are looked up before anything is waited for: an id may be used again meanwhile.
        asked = [
            (self._tracker.live(job_id, owner), self._tracker.record(job_id, owner)) for job_id in job_ids
        ]
        for job, _ in asked:
            if job is not None and not await self._worker.streams.of(job).ended(until):
                return None
        records = [ended if job is None else record_of(job) for job, ended in asked]
        return [record for record in records if record is not None and record["receipt"] is not None]

    async def record(self, job_id: str, owner: str) -> Record | None:
        """The record of the latest job with this id."""
        self._worker.forget_old()
        return self._tracker.record(job_id, owner)

    async def records(self, owner: str, limit: int) -> list[Record]:
        """An owner's records."""
        self._worker.forget_old()
        return self._tracker.records(owner, limit)

    async def stream_of(self, job_id: str, owner: str = "") -> JobStream:
        """A job's stream."""
        self._worker.forget_old()
        return self._worker.stream_of(job_id, owner)

    async def drop_events(self, job: Job) -> None:
        """Drop an ended job's events. The id may be in use again."""
        if self._tracker.ended_job(job.job_id, job.owner) is job:
            self._tracker.drop_events(job.job_id, job.owner)

    async def tokenize(self, prompt: str, template: Template, correlation_id: str, owner: str) -> Tokenized:
        """The tokens of a prompt."""
        return await self._worker.tokenizing.prepare(prompt, template, correlation_id, owner)

    def reader_left(self, stream: JobStream) -> None:
        """Handle the closed connection of a job's request."""
        self._worker.reader_left(stream)

    def follower_left(self, stream: JobStream) -> None:
        """Handle the closed connection of a follower."""
        self._worker.follower_left(stream)

    def stop(self, job: Job, reason: StopReason) -> None:
        """Stop this job."""
        self._worker.stop(job, reason)

    def refused(self, job_id: str, owner: str = "") -> None:
        """Note a refused request."""
        self._worker.refused(job_id, owner)

    def count_refusal(self, code: ErrorCode) -> None:
        """Count a refused request."""
        self._worker.metrics.refusals.labels(code.value).inc()

    def health(self, *, operator: bool, private_load: bool) -> Health:
        """Health now."""
        seen = health_of(self._worker)
        if operator:
            return seen
        return seen.for_everybody(self._worker.supervisor.state, private_load=private_load)

    @property
    def permanently_failed(self) -> bool:
        """Whether no engine can be started any more."""
        return self._worker.permanently_failed.is_set()

    async def metrics(self) -> bytes:
        """The worker's metrics."""
        return self._worker.metrics.render()
