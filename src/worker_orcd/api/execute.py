"""`POST /execute`: take a job in and stream it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from worker_orcd.api import schema
from worker_orcd.api.access import owner_of
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
    "temperature": 0.7,
    "seed": 42,
}
_STREAM = schema.stream(
    200, "The job's events: `started`, `token`*, then exactly one of `end` or `error`; or just `error`"
)


def router(worker: Worker) -> APIRouter:
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
            _EXAMPLE | {"max_tokens": min(1000, ceilings.max_tokens_out)},
            prompt={"maxLength": ceilings.max_prompt_chars},
            max_tokens={"maximum": ceilings.max_tokens_out},
        ),
    )
    async def execute(request: Request) -> Response:
        asked = ExecuteRequest.parse_within(await request.body(), ceilings)
        stream = worker.execute(asked, correlation_id.get() or "", owner_of(request))
        try:
            await _unless_it_leaves(request, worker.measured(stream, MEASURE_PATIENCE_SEC))
            return JobStreamResponse(worker, stream)
        except ClientDisconnect:
            stream.join()
            worker.reader_left(stream)
            raise
        except BaseException:
            worker.stop(stream.job, StopReason.DISCONNECT)
            raise

    return routes


async def _unless_it_leaves(request: Request, waiting: Coroutine[Any, Any, None]) -> None:
    """Wait, but no longer than the client is there.

    Raises:
        ClientDisconnect: it has left.
    """
    done = asyncio.ensure_future(waiting)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientDisconnect
        await done
    finally:
        done.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
