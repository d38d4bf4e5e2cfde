"""`POST /cancel`: stop a job. Always 202, in any state, any number of times."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from worker_orcd.api import schema
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import CancelRequest
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.worker import Worker

_EXAMPLE: dict[str, object] = {"job_id": "test-123"}
_ANSWER: dict[str, object] = {"status": "cancelling", "job_id": "test-123"}


def router(worker: Worker) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["jobs"])

    @routes.post(
        "/cancel",
        summary="Stop a job (idempotent)",
        status_code=202,
        response_class=JSONResponse,
        responses=schema.answer(
            202, "Whatever the job is, was, or is not", "application/json", example=_ANSWER
        )
        | schema.errors(400, 413),
        openapi_extra=schema.body(CancelRequest, _EXAMPLE),
    )
    async def cancel(request: Request) -> JSONResponse:
        asked = CancelRequest.parse(await request.body())
        preferences = request.headers.get("prefer", "").lower().split(",")
        if any(preference.strip().startswith("wait") for preference in preferences):
            raise invalid("Prefer: wait is not supported by this release", "Prefer")
        worker.cancel(asked.job_id, correlation_id.get() or "")
        return JSONResponse(asked.answer(), status_code=202)

    return routes
