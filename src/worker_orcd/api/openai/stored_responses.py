"""Stored responses: continue, cancel and delete them, and list their input items."""

from collections.abc import Sequence
from typing import cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from worker_orcd.api import schema
from worker_orcd.api.access import owner_of
from worker_orcd.api.openai import input_items
from worker_orcd.api.openai.completions import model_of
from worker_orcd.api.openai.response_object import ResponseObject, asked_of
from worker_orcd.api.openai.response_request import ResponseJob
from worker_orcd.api.sse import named
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.jobs.events import Error
from worker_orcd.jobs.job import Job
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream

CANCEL_MARGIN_SEC = 1.0
"""A cancel is finished within its deadline. The response waits at most this much longer."""


async def stream_of(worker: WorkerInterface, request: Request, response_id: str) -> JobStream:
    """The job of a response of the request's owner. The job may be live or ended.

    Raises:
        JobError: `JOB_NOT_FOUND`: the owner has no such response.
    """
    stream = await worker.stream_of(response_id, owner_of(request))
    if not isinstance(stream.job.request, ResponseJob):
        raise _unknown()
    return stream


async def shown_stream_of(worker: WorkerInterface, request: Request, response_id: str) -> JobStream:
    """The same, but only if the response is live or has `store`.

    Raises:
        JobError: `JOB_NOT_FOUND`: the owner has no such response.
    """
    stream = await stream_of(worker, request, response_id)
    if not (stream.job.live or asked_of(stream.job).stored):
        raise _unknown()
    return stream


def shown_of(worker: WorkerInterface, job: Job) -> ResponseObject:
    """A response in the API's format.

    Raises:
        JobError: `INVALID_REQUEST` with 404: the request's model name is no longer valid.
    """
    return ResponseObject(job, model_of(worker, asked_of(job).model), lambda: worker.tool_formats)


async def continued(
    worker: WorkerInterface, request: Request, previous_id: str | None
) -> Sequence[input_items.Item]:
    """The items of the response that a request continues: its input and its output.

    This does not depend on how the response ended: the model gets the output that the reader received. An output
    without text and complete calls becomes an empty message, because many templates require alternating roles.

    Raises:
        JobError: `INVALID_REQUEST`: the response has not ended, is not stored, or belongs to another owner.
    """
    if previous_id is None:
        return ()
    job = await _kept(worker, previous_id, owner_of(request))
    if job is None or not isinstance(job.request, ResponseJob) or not job.request.stored or _refused(job):
        raise JobError(
            ErrorCode.INVALID_REQUEST,
            f"Previous response with id {previous_id[:256]!r} not found.",
            param="previous_response_id",
            openai_code="previous_response_not_found",
        )
    if job.live:
        raise invalid(
            "the previous response has not ended: wait for its end, or cancel it", "previous_response_id"
        )
    shown = shown_of(worker, job)
    said = shown.output()
    calls = any(item["type"] == "function_call" and item["status"] == "completed" for item in said)
    if not calls and not any(item["type"] == "message" for item in said):
        said.append(shown.empty_message())
    return (*job.request.items, *map(input_items.without_logprobs, said))


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of these resources."""
    routes = APIRouter(prefix="/v1/responses", tags=["OpenAI-compatible"])

    async def stop(request: Request, job: Job) -> None:
        if job.live:
            await worker.cancel(job.job_id, correlation_id.get() or "", owner_of(request))
            patience_sec = worker.policy.cancel_deadline_sec + CANCEL_MARGIN_SEC
            await worker.receipts([job.job_id], owner_of(request), patience_sec)

    @routes.post(
        "/{response_id}/cancel",
        summary="Cancel a response (idempotent)",
        response_class=Response,
        responses=schema.answer(200, "The response afterwards", "application/json", schema={"type": "object"})
        | schema.errors(404),
    )
    async def cancel(request: Request, response_id: str) -> Response:
        stream = await stream_of(worker, request, response_id)
        await stop(request, stream.job)
        answer = shown_of(worker, stream.job).whole(with_output=asked_of(stream.job).stored)
        return JSONResponse(answer, headers=named([stream]))

    @routes.delete(
        "/{response_id}",
        summary="Delete a response; a live one is stopped first",
        response_class=Response,
        responses=schema.answer(200, "`id` and `deleted`", "application/json", schema={"type": "object"})
        | schema.errors(404),
    )
    async def delete(request: Request, response_id: str) -> Response:
        stream = await shown_stream_of(worker, request, response_id)
        await stop(request, stream.job)
        await worker.drop_events(stream.job)
        return JSONResponse(
            {"id": response_id, "object": "response", "deleted": True}, headers=named([stream])
        )

    @routes.get(
        "/{response_id}/input_items",
        summary="The input items of a response, the latest first",
        response_class=Response,
        responses=schema.answer(200, "A page of items", "application/json", schema={"type": "object"})
        | schema.errors(400, 404),
        openapi_extra=input_items.PARAMETERS,
    )
    async def items(request: Request, response_id: str) -> Response:
        job = (await shown_stream_of(worker, request, response_id)).job
        return JSONResponse(input_items.page_of(cast("ResponseJob", job.request).items, request))

    return routes


async def _kept(worker: WorkerInterface, response_id: str, owner: str) -> Job | None:
    try:
        return (await worker.stream_of(response_id, owner)).job
    except JobError:
        return None


def _refused(job: Job) -> bool:
    return isinstance(job.terminal, Error) and job.terminal.code is ErrorCode.INVALID_REQUEST


def _unknown() -> JobError:
    return JobError(ErrorCode.JOB_NOT_FOUND, "no live or stored response has this id")
