"""Why a router refuses a job."""

from collections.abc import Sequence

from worker_orcd.fleet.wire import WorkerState
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.worker.health import Status


def keepers_silent() -> JobError:
    """Neither keeper of an id answers: whether it is in use is not known."""
    message = "the workers that know whether this job_id is in use do not answer"
    return JobError(ErrorCode.ENGINE_LOST, message, http_status=503, retry_after_sec=1)


def no_worker() -> JobError:
    """No worker can be reached."""
    return JobError(
        ErrorCode.ENGINE_LOST, "no worker of the fleet can be reached", http_status=503, retry_after_sec=1
    )


def nobody_takes_jobs(workers: Sequence[WorkerState | None]) -> JobError:
    """None of the workers (None: its state is not known yet) takes jobs."""
    if workers and all(worker and worker.health.status is Status.DRAINING for worker in workers):
        return JobError(ErrorCode.DRAINING, "the workers are shutting down", retry_after_sec=5)
    return no_worker()
