"""`POST /execute`: take a job in and stream it."""

from fastapi import APIRouter, Request, Response

from worker_orcd.api import schema
from worker_orcd.api.sse import JobStreamResponse
from worker_orcd.jobs.request import ExecuteRequest
from worker_orcd.jobs.stops import StopReason
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.worker import Worker

MEASURE_PATIENCE_SEC = 1.0
"""How long the answer waits to learn whether the prompt fits, so that a 400 can still be one."""

_EXAMPLE: dict[str, object] = {
    "job_id": "test-123",
    "prompt": "Write a long story...",
    "max_tokens": 1000,
    "temperature": 0.7,
    "seed": 42,
}
_STREAM = schema.answer(
    200,
    "The job's events: `started`, `token`*, then exactly one of `end` or `error`; or just `error`",
    "text/event-stream",
    schema={"type": "string"},
)


def router(worker: Worker) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["jobs"])

    @routes.post(
        "/execute",
        summary="Run a job and stream its tokens",
        response_class=Response,
        responses=_STREAM | schema.errors(400, 409, 413, 429, 503),
        openapi_extra=schema.body(ExecuteRequest, _EXAMPLE),
    )
    async def execute(request: Request) -> Response:
        asked = ExecuteRequest.parse_within(await request.body(), worker.policy.ceilings)
        stream = worker.execute(asked, correlation_id.get() or "")
        try:
            await worker.measured(stream, MEASURE_PATIENCE_SEC)
            return JobStreamResponse(worker, stream)
        except BaseException:
            worker.stop(stream.job, StopReason.DISCONNECT)
            raise

    return routes
