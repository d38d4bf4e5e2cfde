"""Targets of stop requests, in their state when the request arrived."""

from enum import StrEnum
from typing import NamedTuple

from worker_orcd.jobs.job import Job


class TargetState(StrEnum):
    """State of a job id when a stop request for it arrives."""

    LIVE = "live"
    STOPPING = "stopping"
    FINISHED = "finished"
    UNKNOWN = "unknown"


class Target(NamedTuple):
    """The state of a job id when a stop request for it arrives, and its job if that is live."""

    state: TargetState
    job: Job | None = None
