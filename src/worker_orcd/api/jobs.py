"""`GET /jobs` and `GET /jobs/{job_id}`: live jobs, recent ones, and their receipts."""

from typing import Any

from fastapi import APIRouter

from worker_orcd.api import schema
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.worker.worker import Worker


def router(worker: Worker) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["jobs"])
    tracker = worker.dispatcher.tracker

    @routes.get("/jobs", summary="Live jobs, oldest first, then ended ones, latest first")
    async def jobs() -> dict[str, list[dict[str, Any]]]:
        worker.forget_old()
        return {"jobs": tracker.records()}

    @routes.get(
        "/jobs/{job_id}",
        summary="One job's record; its receipt, if it was stopped",
        responses=schema.errors(404),
    )
    async def job(job_id: str) -> dict[str, Any]:
        worker.forget_old()
        record = tracker.record(job_id)
        if record is None:
            raise JobError(ErrorCode.JOB_NOT_FOUND, "no job with this id is live or remembered")
        return record

    return routes
