"""The queue in front of the engine. Decides which jobs are handed over."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import State

AHEAD = 2
"""How many jobs beyond its slots are handed to the engine, not counting jobs that wait for another one's prefix."""
_SPARE = 64
"""Entries of jobs that no longer wait are dropped when they are more than the waiting jobs, and more than this."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine can hold.

    Attributes:
        cells: KV cells in all.
        cells_per_job: KV cells that one job may use: its context.
        sequences: jobs decoded together.
    """

    cells: int
    cells_per_job: int
    sequences: int

    def max_tokens_for(
        self, prompt_tokens: int, asked: int | None, ceiling: int | None, *, cut: bool = False
    ) -> int:
        """How many tokens a job with such a prompt may generate: as requested, or as many as fit.

        Args:
            prompt_tokens: the prompt's length.
            asked: the request's `max_tokens`.
            ceiling: the worker's `--max-tokens-out`, if it has one.
            cut: reduce `asked` to what fits, instead of refusing it.

        Raises:
            JobError: `INVALID_REQUEST`: the job can never fit.
        """
        room = self.cells_per_job - prompt_tokens
        least = 0 if asked == 0 else 1
        if room < least:
            # LiteLLM and coding agents recognize these words, and then shorten the conversation.
            raise JobError(
                ErrorCode.INVALID_REQUEST,
                f"This model's maximum context length is {self.cells_per_job} tokens. However, your prompt has "
                f"{prompt_tokens} tokens{', and at least one must be left for output' if least else ''}. Please reduce "
                "the length of the prompt.",
                param="prompt",
                openai_code="context_length_exceeded",
            )
        most = room if ceiling is None else min(ceiling, room)
        if asked is None or (cut and asked > most):
            return most
        if asked > room:
            raise invalid(
                f"prompt ({prompt_tokens} tokens) and max_tokens ({asked}) need {prompt_tokens + asked} tokens of "
                f"context; a job has {self.cells_per_job}",
                "max_tokens",
            )
        return asked


@dataclass(frozen=True, slots=True)
class ReadyEngine:
    """A ready engine: its capacity and its model's name."""

    capacity: Capacity
    model: str


class JobQueue:
    """Waiting jobs by urgency and arrival, and the jobs in the engine.

    The engine decides which job gets a slot. The first jobs in order are handed to it, a few more than it has slots, so
    that it always has the next one; all other jobs can be ended locally. The head is the first job in order whose
    prompt is counted, so a prompt that renders slowly delays no other job.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._in_engine: dict[int, Job] = {}
        self._counted: list[tuple[tuple[float, int], int]] = []
        """A heap of runs whose prompts are counted, by `Job.order`. It may have entries of jobs that no longer wait."""
        self.followers = 0
        """Number of jobs in the engine that wait for another one's prefix, as last reported. Others can use their
        slots."""

    def __len__(self) -> int:
        """Number of waiting jobs, here and in the engine."""
        return len(self._waiting) + sum(job.state is State.WAITING for job in self._in_engine.values())

    def __iter__(self) -> Iterator[Job]:
        """Jobs that wait here, in order."""
        return iter(tuple(self._waiting.values()))

    @property
    def in_engine(self) -> tuple[Job, ...]:
        """Jobs that were handed over."""
        return tuple(self._in_engine.values())

    @property
    def in_slots(self) -> tuple[Job, ...]:
        """Jobs that have a slot, as far as the front knows."""
        return tuple(job for job in self._in_engine.values() if job.in_slot)

    @property
    def running(self) -> int:
        """Number of jobs that have a slot."""
        return len(self.in_slots)

    def append(self, job: Job) -> None:
        """Queue a job, in front of all jobs that come later in order."""
        last = next(reversed(self._waiting.values()), None)
        if last is None or last.order < job.order:
            self._waiting[job.run] = job
            return
        # Waiting jobs are in order, so only the earlier ones are visited.
        earlier = [other.run for other in takewhile(lambda o: o.order < job.order, self._waiting.values())]
        self._waiting[job.run] = job
        for run in (job.run, *reversed(earlier)):
            self._waiting.move_to_end(run, last=False)

    def prompt_counted(self, job: Job) -> None:
        """Note that the prompt of a waiting job is counted."""
        if len(self._counted) > 2 * len(self._waiting) + _SPARE:
            self._counted = [entry for entry in self._counted if entry[1] in self._waiting]
            heapq.heapify(self._counted)
        heapq.heappush(self._counted, (job.order, job.run))

    def engine_lost(self) -> None:
        """The engine is dead: jobs in it are queued again."""
        self.followers = 0
        for job in self.in_engine:
            self.returned(job)
        self._in_engine.clear()

    def returned(self, job: Job) -> None:
        """The engine does not have a job any more. If the job can continue, it is queued again, in front of all jobs
        that come later in order."""
        if job.state is State.QUEUED:
            del self._in_engine[job.run]
            self.append(job)
            self.prompt_counted(job)

    def remove(self, job: Job) -> None:
        """Remove a job from the queue or the engine. Harmless if it is in neither."""
        self._waiting.pop(job.run, None)
        self._in_engine.pop(job.run, None)

    def next_to_hand_over(self, capacity: Capacity) -> Job | None:
        """Take the head of the queue if it can be handed over. The job counts as in the engine until it is removed."""
        while self._counted and self._counted[0][1] not in self._waiting:
            heapq.heappop(self._counted)
        if not self._counted:
            return None
        head = self._waiting[self._counted[0][1]]
        return head if self.hand_over(head, capacity) else None

    def hand_over(self, job: Job, capacity: Capacity) -> bool:
        """Count a job as in the engine, even if others are ahead of it, unless the engine has enough jobs that this one
        may not preempt."""
        staying = sum(not job.may_preempt(other) for other in self._in_engine.values())
        enough = capacity.sequences + AHEAD
        if staying >= enough + min(self.followers, enough):
            return False
        del self._waiting[job.run]
        self._in_engine[job.run] = job
        return True
