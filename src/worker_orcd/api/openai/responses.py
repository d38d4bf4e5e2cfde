"""`POST /v1/responses` and the endpoints of a response.

A response is a job. Everything that clients receive of it is derived from the job, so a resumed stream is identical.
"""

from collections.abc import AsyncIterator
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from worker_orcd.api import schema
from worker_orcd.api.openai.completions import ended, failed, model_of
from worker_orcd.api.openai.names import error_style, fresh_name
from worker_orcd.api.openai.response_bodies import failure_of
from worker_orcd.api.openai.response_events import ResponseEvents
from worker_orcd.api.openai.response_object import response_usage
from worker_orcd.api.openai.response_request import ResponseRequest
from worker_orcd.api.openai.stored_responses import continued, shown_of, shown_stream_of
from worker_orcd.api.sse import ReaderResponse, Readers, named, whole_number
from worker_orcd.api.submit import submit, unless_disconnected
from worker_orcd.jobs.events import Error
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream, KeepAlive

_EXAMPLE: dict[str, object] = {"input": "Write a haiku.", "max_output_tokens": 64}


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(prefix="/v1/responses", tags=["OpenAI-compatible"])

    @routes.post(
        "",
        summary="Generate a response: at once, as a stream or in the background",
        response_class=Response,
        responses=_answers() | schema.errors(400, 401, 404, 409, 413, 429, 503),
        openapi_extra=schema.body(ResponseRequest, _EXAMPLE),
    )
    async def create(request: Request) -> Response:
        asked = ResponseRequest.parse(await request.body())
        asked = asked.superseding(request.headers.get("x-supersedes"))
        model_of(worker, asked.model)
        offered = request.headers.get("x-job-id")
        name = fresh_name("resp_", offered)
        with error_style(asked.names):
            earlier = await continued(worker, request, asked.previous_response_id)
            wanted = asked.wanted(name, earlier, named_by_client=offered is not None)
            (stream,) = await submit(worker, request, [wanted.within(worker.policy.ceilings)], may_retry=True)
        shown = shown_of(worker, stream.job)
        if asked.stream:
            return ReaderResponse(worker, [stream], partial(_frames, stream, ResponseEvents(shown)))
        if not asked.background:
            with Readers(worker, [stream]):
                await unless_disconnected(request, ended([stream]))
            if isinstance(stream.job.terminal, Error):
                usage = response_usage(stream.job)
                return failed(failure_of(stream.job.terminal, asked.names, usage), [stream], request)
        return JSONResponse(shown.whole(), headers=named([stream]))

    @routes.get(
        "/{response_id}",
        summary="A response; with `stream`, its events after `starting_after`",
        response_class=Response,
        responses=_answers() | schema.errors(400, 404, 429),
        openapi_extra=schema.query(
            "starting_after",
            "the last `sequence_number` received; from another use of the id: 404",
            2**53 - 1,
        ),
    )
    async def get(request: Request, response_id: str) -> Response:
        stream = await shown_stream_of(worker, request, response_id)
        shown = shown_of(worker, stream.job)
        after = whole_number(request.query_params.get("starting_after"), "starting_after")
        if request.query_params.get("stream") == "true":
            events = ResponseEvents(shown, after)
            return ReaderResponse(worker, [stream], partial(_frames, stream, events), follows=True)
        return JSONResponse(shown.whole(), headers=named([stream]))

    return routes


async def _frames(stream: JobStream, events: ResponseEvents, keep_alive: KeepAlive) -> AsyncIterator[bytes]:
    for data in events.opening():
        yield data
    async for batch in stream.read(keep_alive):
        yield b"".join(data for _, event in batch for data in events.emit(event))


def _answers() -> schema.Responses:
    described = schema.answer(
        200, "A `response`, or its events", "application/json", schema={"type": "object"}
    )
    described[200]["content"]["text/event-stream"] = {"itemSchema": {"type": "object"}}
    return described
