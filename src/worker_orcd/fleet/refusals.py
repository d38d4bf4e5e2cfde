"""Why a router refuses a job."""

from worker_orcd.jobs.errors import ErrorCode, JobError


def keepers_silent() -> JobError:
    """Neither keeper of an id answers: whether it is in use is not known."""
    message = "the workers that know whether this job_id is in use do not answer"
    return JobError(ErrorCode.ENGINE_LOST, message, http_status=503, retry_after_sec=1)


def no_worker() -> JobError:
    """No worker can be reached."""
    return JobError(
        ErrorCode.ENGINE_LOST, "no worker of the fleet can be reached", http_status=503, retry_after_sec=1
    )
