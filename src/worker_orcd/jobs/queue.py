"""The waiting line in front of the engine, and what of it fits beside the running jobs."""

from collections import OrderedDict
from dataclasses import dataclass

from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine can hold.

    Attributes:
        cells: KV cells in all.
        cells_per_job: KV cells that any one job may use: the context it has to fit.
        sequences: jobs decoded together.
    """

    cells: int
    cells_per_job: int
    sequences: int

    def max_tokens_for(self, prompt_tokens: int, asked: int | None, ceiling: int) -> int:
        """How many tokens a job with such a prompt may put out: what it asked for, or as many as fit.

        Raises:
            JobError: `INVALID_REQUEST`, it can never fit.
        """
        room = self.cells_per_job - prompt_tokens
        if room < 1:
            raise invalid(
                f"prompt has {prompt_tokens} tokens, but a job's context is {self.cells_per_job} tokens "
                "and at least one must be left for output",
                "prompt",
            )
        if asked is None:
            return min(ceiling, room)
        if asked > room:
            raise invalid(
                f"prompt ({prompt_tokens} tokens) and max_tokens ({asked}) need {prompt_tokens + asked} tokens of "
                f"context, a job has {self.cells_per_job}",
                "max_tokens",
            )
        return asked


class JobQueue:
    """Jobs in the order they came, and the running ones' reservations.

    A job runs only when its prompt and output fit beside the running ones. The head waits until it fits, and
    nobody overtakes it.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._held: dict[int, int] = {}

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that hold a place in the engine."""
        return len(self._held)

    def append(self, job: Job) -> None:
        """Join the end of the line."""
        self._waiting[job.run] = job

    def leave(self, job: Job) -> None:
        """Give back a place in the line or in the engine. Harmless if it has neither."""
        self._waiting.pop(job.run, None)
        self._held.pop(job.run, None)

    def next_to_run(self, capacity: Capacity) -> Job | None:
        """Take the head of the line, if it fits now; it then holds its place until it leaves."""
        head = next(iter(self._waiting.values()), None)
        if head is None or head.prompt_tokens is None:
            return None
        if len(self._held) >= capacity.sequences:
            return None
        if sum(self._held.values()) + head.cells_needed > capacity.cells:
            return None
        del self._waiting[head.run]
        self._held[head.run] = head.cells_needed
        return head
