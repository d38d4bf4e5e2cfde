"""Chooses the prompt that the engine prepares next. Fair: one owner's prompts do not delay another owner's for long."""

from collections import Counter
from collections.abc import Iterable

from worker_orcd.jobs.job import Job

MAX_PREPARING = 16
"""Prompts that the engine renders and tokenizes at a time: more than keep it busy, as some may be slow to render."""


class Preparing:
    """Jobs whose prompts are not prepared yet, and those that the engine prepares now.

    Whether a prompt takes long to render shows only while it is being rendered. So an owner gets another place only if
    it holds fewer than are free: at most 8 of 16, the next owner 4 of the rest, then 2, and so on. A place goes to the
    owner that holds fewest, and among those to the oldest job. So an owner that holds none waits for a place only while
    five others hold them all, and then until one of their prompts is prepared.
    """

    def __init__(self, waiting: Iterable[Job] = ()) -> None:
        self._waiting: dict[str, dict[int, Job]] = {}
        """Jobs whose prompts are not prepared yet, by owner, in order."""
        self._given: dict[int, str] = {}
        """Runs whose prompts the engine has been given, in order, and their owners; of jobs that have ended, too."""
        self._places: Counter[str] = Counter()
        for job in waiting:
            self.add(job)

    def __contains__(self, run: int) -> bool:
        """Whether the engine prepares this run's prompt."""
        return run in self._given

    @property
    def oldest(self) -> int | None:
        """Of the runs whose prompts the engine prepares, the one it was handed first."""
        return next(iter(self._given), None)

    def add(self, job: Job) -> None:
        """A job's prompt waits to be prepared."""
        self._waiting.setdefault(job.owner, {})[job.run] = job

    def remove(self, job: Job) -> None:
        """A job has ended: its prompt no longer waits. The engine may still be preparing it."""
        own = self._waiting.get(job.owner)
        if own is not None and own.pop(job.run, None) is not None and not own:
            del self._waiting[job.owner]

    def next(self, only: Job | None = None) -> Job | None:
        """Remove and return the job whose prompt the engine gets next, if there is one; with `only`, no other job."""
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
        """The engine has prepared this run's prompt, or refused it. Harmless if it was not given it."""
        owner = self._given.pop(run, None)
        if owner is not None:
            self._places[owner] -= 1
            if not self._places[owner]:
                del self._places[owner]
