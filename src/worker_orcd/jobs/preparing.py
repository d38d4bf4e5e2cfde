"""Chooses the next prompt for the engine to prepare. It is fair: an owner's prompts do not delay others for long."""

from collections import Counter
from collections.abc import Iterable

from worker_orcd.jobs.job import Job

MAX_PREPARING = 16
"""The most prompts in preparation at a time: more than necessary to keep the engine busy, since some render slowly."""


class Preparing:
    """Jobs whose prompts wait for preparation, and prompts that the engine prepares now.

    Whether a prompt renders slowly is unknown before it is rendered. So an owner gets another place only while it holds
    fewer than are free: at most 8 of 16, the next owner 4 of the rest, then 2, and so on. A place goes to the owner
    that holds the fewest, and among these to the oldest job. So an owner without a place waits only while five others
    hold all places, and only until one of their prompts is prepared.
    """

    def __init__(self, waiting: Iterable[Job] = ()) -> None:
        self._waiting: dict[str, dict[int, Job]] = {}
        """By owner: jobs whose prompts wait for preparation, in order."""
        self._given: dict[int, str] = {}
        """By run: owners of the prompts that were sent to the engine, in order, including those of ended jobs."""
        self._places: Counter[str] = Counter()
        for job in waiting:
            self.add(job)

    def __contains__(self, run: int) -> bool:
        """Whether the engine prepares this run's prompt."""
        return run in self._given

    @property
    def oldest(self) -> int | None:
        """The run whose prompt has been in preparation for longest."""
        return next(iter(self._given), None)

    def add(self, job: Job) -> None:
        """Add a job whose prompt is to be prepared."""
        self._waiting.setdefault(job.owner, {})[job.run] = job

    def remove(self, job: Job) -> None:
        """Remove a job that has ended. The engine may still be preparing its prompt."""
        own = self._waiting.get(job.owner)
        if own is not None and own.pop(job.run, None) is not None and not own:
            del self._waiting[job.owner]

    def next(self, only: Job | None = None) -> Job | None:
        """Remove and return the job whose prompt is prepared next, if any. With `only`, no other job is considered."""
        free = MAX_PREPARING - len(self._given)
        if not free or not self._waiting:
            return None
        if only is not None:
            job = self._waiting.get(only.owner, {}).get(only.run)
        else:
            may = [owner for owner in self._waiting if self._places[owner] < free]
            job = min(
                (next(iter(self._waiting[owner].values())) for owner in may),
                key=lambda job: (self._places[job.owner], job.run),
                default=None,
            )
        if job is not None:
            self.remove(job)
            self._given[job.run] = job.owner
            self._places[job.owner] += 1
        return job

    def prepared(self, run: int) -> None:
        """The engine has prepared or refused this run's prompt. Harmless if the prompt is unknown."""
        owner = self._given.pop(run, None)
        if owner is not None:
            self._places[owner] -= 1
            if not self._places[owner]:
                del self._places[owner]
