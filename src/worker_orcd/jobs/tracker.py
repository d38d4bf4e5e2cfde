"""Live jobs by id, and a bounded store of ended jobs."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from worker_orcd.bounded import BoundedByOwner, Owner
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.errors import id_in_use
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.request import JobRequest

RECORDS_KEPT = 10_000
RECORDS_KEPT_SEC = 300.0
KEPT_BYTES = 32 << 20
"""The most bytes of events of all ended jobs together: about four million tokens. Beyond this, the oldest jobs of the
owner with the most bytes lose their events. Their records stay."""


class _Record(NamedTuple):
    """The record of an ended job, and when it ended (monotonic seconds)."""

    ended_at: float
    shown: dict[str, object]


class _Named:
    """Live jobs by owner and a name that several jobs may share."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], dict[int, Job]] = {}

    def add(self, job: Job, name: str | None) -> None:
        """Add a job, unless its name is None."""
        if name is not None:
            self._jobs.setdefault((job.owner, name), {})[job.run] = job

    def remove(self, job: Job, name: str | None) -> None:
        """Remove a job that was added with this name."""
        if name is not None:
            members = self._jobs[job.owner, name]
            del members[job.run]
            if not members:
                del self._jobs[job.owner, name]

    def of(self, name: str, owner: str) -> list[Job]:
        """The owner's jobs with exactly this name, oldest first."""
        return list(self._jobs.get((owner, name), {}).values())


class JobTracker:
    """Finds live jobs by id, run or group, and keeps ended ones.

    An id has at most one live job for each owner. Without API keys, the owner of all jobs is "". The latest record of
    each id is kept for five minutes after the job's end, at most 10,000 records; its stream can be read as long as its
    events are kept. Beyond a bound, the owner with the most loses the oldest, so no owner's jobs displace another's.
    """

    def __init__(
        self, *, keep: int = RECORDS_KEPT, keep_sec: float = RECORDS_KEPT_SEC, keep_bytes: int = KEPT_BYTES
    ) -> None:
        self._live: dict[JobKey, Job] = {}
        self._by_run: dict[int, Job] = {}
        self._groups = _Named()
        self._supersedable = _Named()
        self._parts = _Named()
        self._records: BoundedByOwner[str, _Record] = BoundedByOwner(keep)
        self._whole: BoundedByOwner[str, Job] = BoundedByOwner(keep_bytes)
        """Ended jobs whose events are kept."""
        self._keep_sec = keep_sec

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Job]:
        """The live jobs, oldest first."""
        return iter(tuple(self._live.values()))

    def register(self, job: Job) -> None:
        """Add a live job.

        Raises:
            JobError: `JOB_ID_IN_USE`: a live job has this id.
        """
        self.refuse_live(job.job_id, job.owner)
        self._live[job.key] = job
        self._by_run[job.run] = job
        self._groups.add(job, job.request.group)
        self._supersedable.add(job, job.request.supersedes)
        self._parts.add(job, job.request.part_of)

    def refuse_live(self, job_id: str, owner: str) -> None:
        """Check that no live job has this id.

        Raises:
            JobError: `JOB_ID_IN_USE`: a live job has this id.
        """
        if (owner, job_id) in self._live:
            raise id_in_use()

    def unregister(self, job: Job, now: Timestamp) -> None:
        """Remove a job that has ended: its id is free again, and its record is kept. Harmless if it is unknown."""
        if self._live.get(job.key) is not job:
            return
        del self._live[job.key]
        del self._by_run[job.run]
        self._groups.remove(job, job.request.group)
        self._supersedable.remove(job, job.request.supersedes)
        self._parts.remove(job, job.request.part_of)
        self._forget(job.owner, job.job_id)
        record = record_of(job)
        job.drop_run_data()
        if job.request.stored:
            self._whole.add(job.owner, job.job_id, job, job.kept_bytes)
        for lost in self._records.add(job.owner, job.job_id, _Record(now.mono, record)):
            self._whole.remove(lost.owner, lost.name)
        self.forget_old(now)

    def live(self, job_id: str, owner: str = "") -> Job | None:
        """The live job with exactly this id."""
        return self._live.get((owner, job_id))

    def in_group(self, group: str, owner: str = "") -> list[Job]:
        """The live jobs of exactly this group, oldest first."""
        return self._groups.of(group, owner)

    def parts_of(self, request_id: str, owner: str = "") -> list[Job]:
        """The live jobs of the request with exactly this id, oldest first."""
        return self._parts.of(request_id, owner)

    def rivals(
        self, request: JobRequest, owner: str, precedence: tuple[float, str]
    ) -> tuple[list[Job], Job | None]:
        """The live jobs that a request with this precedence supersedes, oldest first, and the last one by which it is
        superseded, without jobs that are being stopped."""
        if request.supersedes is None:
            return [], None
        live = [job for job in self._supersedable.of(request.supersedes, owner) if not job.stop]
        last = max(live, key=lambda job: job.precedence, default=None)
        newer = last if last is not None and last.precedence > precedence else None
        return [job for job in live if job.precedence < precedence], newer

    def by_run(self, run: int) -> Job | None:
        """The live job with this run number."""
        return self._by_run.get(run)

    def ended(self, job_id: str, owner: str = "") -> bool:
        """Whether a record of an ended job with this id is kept."""
        return (owner, job_id) not in self._live and self._records.get(owner, job_id) is not None

    def ended_job(self, job_id: str, owner: str = "") -> Job | None:
        """The last ended job with this id, as long as its events are kept."""
        return self._whole.get(owner, job_id)

    def drop_events(self, job_id: str, owner: str = "") -> None:
        """Drop the events of the last ended job with this id. Its record stays."""
        self._whole.remove(owner, job_id)

    def drop_events_of(self, key: JobKey, incarnation: str) -> None:
        """Drop the events of this use of a job id, if it is the last one that ended."""
        owner, job_id = key
        job = self.ended_job(job_id, owner)
        if job is not None and job.incarnation == incarnation:
            self.drop_events(job_id, owner)

    def record(self, job_id: str, owner: str = "") -> dict[str, object] | None:
        """The record of the live job with this id, or else of the last ended one."""
        job = self._live.get((owner, job_id))
        if job is not None:
            return record_of(job)
        return self.ended_record(job_id, owner)

    def ended_record(self, job_id: str, owner: str = "") -> dict[str, object] | None:
        """The record of the last job with this id that ended."""
        kept = self._records.get(owner, job_id)
        return None if kept is None else kept.shown

    def records(self, owner: str = "", limit: int = RECORDS_KEPT) -> list[dict[str, object]]:
        """An owner's records: live jobs, oldest first, then at most `limit` ended jobs, latest first."""
        live = [record_of(job) for job in self if job.owner == owner]
        ended = (entry.value.shown for entry in reversed(self._records.of(owner)))
        return live + list(islice(ended, limit))

    def forget_old(self, now: Timestamp) -> None:
        """Drop records that are too old."""
        for lost in self._records.drop_while(lambda record: now.mono - record.ended_at > self._keep_sec):
            self._whole.remove(lost.owner, lost.name)

    def _forget(self, owner: Owner, job_id: str) -> None:
        self._records.remove(owner, job_id)
        self._whole.remove(owner, job_id)
