"""Jobs that may have caused engine deaths."""

from worker_orcd.jobs.job import Job

SUSPECT_DEATHS = 2
"""A job that was in two dying engines, without a token in between, runs alone until it has a token."""
MAX_DEATHS = 3
"""… and fails with the third."""


def is_suspect(job: Job) -> bool:
    """Whether the job may have caused engine deaths."""
    return job.deaths >= SUSPECT_DEATHS


class Suspects:
    """Live jobs with `SUSPECT_DEATHS` engine deaths, found without a scan over all jobs."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        """Jobs that have ended or have got a token stay here until `oldest` drops them."""

    def add_if_suspect(self, job: Job) -> None:
        """Add a job that was in a dying engine, if it is now a suspect."""
        if is_suspect(job):
            self._jobs[job.run] = job

    def oldest(self) -> Job | None:
        """The job that must run alone now, if any."""
        self._jobs = {run: job for run, job in self._jobs.items() if job.live and is_suspect(job)}
        return self._jobs[min(self._jobs)] if self._jobs else None
