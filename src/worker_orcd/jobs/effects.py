"""What the core wants done. A closed set of values; the worker carries them out in order."""

from dataclasses import dataclass

from worker_orcd.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Prepare:
    """Have the engine render and tokenize this job's prompt."""

    job: Job


@dataclass(frozen=True, slots=True)
class DropPrompt:
    """Have the engine end the preparing of this job's prompt: the job has ended."""

    job: Job


@dataclass(frozen=True, slots=True)
class Run:
    """Hand this job to the engine, from the tokens it has so far on."""

    job: Job


@dataclass(frozen=True, slots=True)
class SendStop:
    """Have the engine stop this job and say when it has."""

    job: Job


@dataclass(frozen=True, slots=True)
class Ended:
    """This job's terminal event is decided, and it holds nothing any more."""

    job: Job


Effect = Prepare | DropPrompt | Run | SendStop | Ended
