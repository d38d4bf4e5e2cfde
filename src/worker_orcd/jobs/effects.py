"""Effects: a closed set of values that tell the worker what to do, in this order."""

from dataclasses import dataclass

from worker_orcd.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Submit:
    """Have the engine render and tokenize this job's prompt, and keep it."""

    job: Job


@dataclass(frozen=True, slots=True)
class Drop:
    """Have the engine drop this job's prompt, because the job has ended before `Begin`."""

    job: Job


@dataclass(frozen=True, slots=True)
class Begin:
    """Hand this job to the engine, which generates when it is the job's turn, after the tokens generated so far."""

    job: Job


@dataclass(frozen=True, slots=True)
class SendStop:
    """Have the engine stop this job and confirm it."""

    job: Job


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has its terminal event, and its cells are free."""

    job: Job


Effect = Submit | Drop | Begin | SendStop | Ended


@dataclass(frozen=True, slots=True)
class Submitted:
    """The jobs of a client's request, and the older jobs that they supersede."""

    jobs: list[Job]
    superseded: list[Job]
    effects: list[Effect]
