"""Effects: what the core asks the worker to do. A closed set of values, carried out in order."""

from dataclasses import dataclass

from worker_orcd.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Prepare:
    """Have the engine render and tokenize this job's prompt."""

    job: Job


@dataclass(frozen=True, slots=True)
class DropPrompt:
    """Have the engine abandon this job's prompt: the job has ended."""

    job: Job


@dataclass(frozen=True, slots=True)
class Run:
    """Hand this job to the engine, which continues after the tokens generated so far."""

    job: Job


@dataclass(frozen=True, slots=True)
class SendStop:
    """Have the engine stop this job and confirm it."""

    job: Job


@dataclass(frozen=True, slots=True)
class Ended:
    """This job has its terminal event, and its cells are free."""

    job: Job


Effect = Prepare | DropPrompt | Run | SendStop | Ended
