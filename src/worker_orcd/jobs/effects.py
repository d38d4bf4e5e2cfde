"""Effects: what the core asks the worker to do. A closed set of values, carried out in order."""

from dataclasses import dataclass

from worker_orcd.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Submit:
    """Have the engine render and tokenize this job's prompt, and keep it."""

    job: Job


@dataclass(frozen=True, slots=True)
class Drop:
    """Have the engine forget this job's prompt: the job has ended before it was to begin."""

    job: Job


@dataclass(frozen=True, slots=True)
class Begin:
    """Hand this job to the engine, which continues after the tokens generated so far as soon as it is its turn."""

    job: Job


@dataclass(frozen=True, slots=True)
class SendStop:
    """Have the engine stop this job and confirm it."""

    job: Job


@dataclass(frozen=True, slots=True)
class Ended:
    """This job has its terminal event, and its cells are free."""

    job: Job


Effect = Submit | Drop | Begin | SendStop | Ended
