"""Deadlines of live jobs: finds the next one without a scan over all jobs."""

import heapq
from collections.abc import Iterable

from worker_orcd.jobs.job import Job

_SPARE = 64
"""Entries of ended jobs are dropped when they are more than the live jobs, and more than this."""


class Deadlines:
    """Live jobs without a stop request, by deadline.

    The entry of a job that ends or is stopped stays until it comes first, or until it is dropped with many others.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Job]] = []

    def __len__(self) -> int:
        """Number of entries, including those of ended jobs."""
        return len(self._heap)

    def add(self, job: Job, live: int) -> None:
        """Add an accepted job; `live` is the number of live jobs, including this one."""
        if len(self._heap) > 2 * live + _SPARE:
            self._heap = [entry for entry in self._heap if _counts(entry[2])]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (job.deadline, job.run, job))

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap and not _counts(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def passed(self, now: float) -> Iterable[Job]:
        """Remove and return the jobs whose deadline is not after `now`, oldest job first."""
        late = []
        while (at := self.next()) is not None and at <= now:
            late.append(heapq.heappop(self._heap)[2])
        return sorted(late, key=lambda job: job.run)


def _counts(job: Job) -> bool:
    return job.live and not job.stop
