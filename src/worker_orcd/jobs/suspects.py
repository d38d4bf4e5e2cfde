"""Jobs that may be the cause of engine deaths."""

from worker_orcd.jobs.job import Job

SUSPECT_DEATHS = 2
"""A job that two engines died with, without a token in between, runs alone until it has a token."""
MAX_DEATHS = 3
"""… and fails with the third."""


def is_suspect(job: Job) -> bool:
    """Whether the job may be the cause of engine deaths."""
    return job.deaths >= SUSPECT_DEATHS


class Suspects:
    """Live jobs that `SUSPECT_DEATHS` engines died with, found without a scan over all jobs."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        """Jobs that have ended, or that a token has cleared, stay here until `oldest` drops them."""

    def add_if_suspect(self, job: Job) -> None:
        """An engine died with this job."""
        if is_suspect(job):
            self._jobs[job.run] = job

    def oldest(self) -> Job | None:
        """The job to run alone now, if there is any."""
        self._jobs = {run: job for run, job in self._jobs.items() if job.live and is_suspect(job)}
        return self._jobs[min(self._jobs)] if self._jobs else None
