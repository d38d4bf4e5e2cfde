"""A client's cancel of a job id, while a router carries it out."""

import asyncio
from dataclasses import dataclass, field

from worker_orcd.fleet.wire import SharedStop
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.worker.now import now


@dataclass(eq=False, slots=True)
class Cancel:
    """A client's cancel of a job id. It is for the uses of the id that were accepted before it was answered.

    Attributes:
        key: owner and job id.
        correlation_id: the cancel's.
        accepted: when it was accepted.
        answered: when it was answered, monotonic seconds.
        recorded: set as soon as another process has it.
        done: incarnations of uses that it has reached.
        remembered: names of keepers that remember it.
        refused: whether a keeper knows of no use, but that the latest request with the id was refused.
    """

    key: JobKey
    correlation_id: str
    accepted: Timestamp
    answered: float = float("inf")
    recorded: asyncio.Event = field(default_factory=asyncio.Event)
    done: set[str] = field(default_factory=set)
    remembered: set[str] = field(default_factory=set)
    refused: bool = False

    @property
    def age_sec(self) -> float:
        """Time since it was accepted."""
        return now().mono - self.accepted.mono

    def of_parts(self) -> SharedStop:
        """The stop of the jobs of the request with this id, if they have ids of their own."""
        owner, name = self.key
        unix = self.accepted.unix
        return SharedStop(owner, "part_of", name, StopReason.CLIENT, self.correlation_id, unix, self.age_sec)

    def is_for(self, job: Job) -> bool:
        """Whether it is for a job whose copy is here."""
        return job.accepted.mono < self.answered

    def reaches(self, age_sec: float) -> bool:
        """Whether it is for a use that was so old when another process said so. The answer took a time that nobody
        knows, so the use may be older, and a cancel that was answered slowly is tried again; it is not younger."""
        return now().mono - age_sec < self.answered
