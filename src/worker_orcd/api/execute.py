"""`POST /execute`: run a job and stream it."""

from fastapi import APIRouter, Request, Response

from worker_orcd.api import schema
from worker_orcd.api.sse import JobStreamResponse
from worker_orcd.api.submit import submit
from worker_orcd.jobs.request import ExecuteRequest
from worker_orcd.worker.interface import WorkerInterface

_EXAMPLE: dict[str, object] = {
    "job_id": "test-123",
    "prompt": "Write a long story...",
    "temperature": 0.7,
    "seed": 42,
}
_STREAM = schema.stream(
    200,
    "The job's events: `started`, `progress`*, `token`*, then exactly one of `end` or `error`; or just `error`",
)


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["jobs"])
    ceilings = worker.policy.ceilings

    @routes.post(
        "/execute",
        summary="Run a job and stream its tokens",
        response_class=Response,
        responses=_STREAM | schema.errors(400, 401, 409, 413, 429, 503),
        openapi_extra=schema.body(
            ExecuteRequest,
            _EXAMPLE | {"max_tokens": min(1000, ceilings.max_tokens_out or 1000)},
            prompt=schema.bound("maxLength", ceilings.max_prompt_chars),
            max_tokens=schema.bound("maximum", ceilings.max_tokens_out),
        ),
    )
    async def execute(request: Request) -> Response:
        asked = ExecuteRequest.parse(await request.body()).within(ceilings)
        (stream,) = await submit(worker, request, [asked])
        return JobStreamResponse(worker, stream)

    return routes
