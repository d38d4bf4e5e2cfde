"""`GET /jobs`, `/jobs/{job_id}` and `/jobs/{job_id}/events`: live and recent jobs, their records and streams."""

import msgspec
from fastapi import APIRouter, Request, Response

from worker_orcd.api import schema
from worker_orcd.api.access import owner_of
from worker_orcd.api.sse import JobStreamResponse, last_event_id
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.worker.interface import WorkerInterface

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
"""The most ended jobs in one response. Bounded because building the response blocks the front."""

_encoder = msgspec.json.Encoder()


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["jobs"])

    @routes.get(
        "/jobs",
        summary="Live jobs, oldest first, then ended jobs, latest first",
        response_class=Response,
        responses=schema.answer(200, "Their records", "application/json", schema={"type": "object"})
        | schema.errors(400),
        openapi_extra=schema.query(
            "limit", f"ended jobs to show, 0 to {MAX_LIMIT}; default {DEFAULT_LIMIT}", MAX_LIMIT
        ),
    )
    async def jobs(request: Request) -> Response:
        limit = _limit(request.query_params.get("limit"))
        return _json({"jobs": await worker.records(owner_of(request), limit)})

    @routes.get(
        "/jobs/{job_id}",
        summary="A job's record, with the receipt if it was stopped",
        response_class=Response,
        responses=schema.answer(200, "Its record", "application/json", schema={"type": "object"})
        | schema.errors(404),
    )
    async def job(request: Request, job_id: str) -> Response:
        record = await worker.record(job_id, owner_of(request))
        if record is None:
            raise JobError(ErrorCode.JOB_NOT_FOUND, "no live or recently ended job has this id")
        return _json(record)

    @routes.get(
        "/jobs/{job_id}/events",
        summary="A job's stream, from the start or after Last-Event-ID; also after the job's end",
        response_class=Response,
        responses=schema.stream(200, "Its events")
        | schema.nothing(
            204, "The reader has received the terminal event; an `EventSource` does not reconnect after this"
        )
        | schema.errors(400, 404, 429),
        openapi_extra=schema.header(
            "Last-Event-ID", "the `id:` of the last event received; from another use of the job id: 404"
        ),
    )
    async def events(request: Request, job_id: str) -> Response:
        seen = last_event_id(request)
        stream = await worker.stream_of(job_id, owner_of(request))
        if not stream.job.request.stored:
            raise JobError(
                ErrorCode.JOB_NOT_FOUND, "this job's events are only in the response to its own request"
            )
        start = stream.job.place_after(seen)
        if not stream.job.live and start >= len(stream.job.events):
            return Response(status_code=204)
        return JobStreamResponse(worker, stream, start, follows=True)

    return routes


def _json(body: dict[str, object]) -> Response:
    return Response(_encoder.encode(body), media_type="application/json")


def _limit(given: str | None) -> int:
    if given is None:
        return DEFAULT_LIMIT
    if not (given.isascii() and given.isdigit() and len(given) <= 6 and int(given) <= MAX_LIMIT):
        raise invalid(f"limit must be a whole number from 0 to {MAX_LIMIT}", "limit")
    return int(given)
