"""`POST /v1/messages` and `/v1/messages/count_tokens`, for Anthropic's clients."""

from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from worker_orcd.api import schema
from worker_orcd.api.access import owner_of
from worker_orcd.api.anthropic.message_bodies import MessageEvents, failure, frames
from worker_orcd.api.anthropic.requests import NAMES, CountRequest, MessagesRequest
from worker_orcd.api.openai.completions import ended, failed, model_of
from worker_orcd.api.openai.names import error_style, fresh_name
from worker_orcd.api.sse import ReaderResponse, Readers, named
from worker_orcd.api.submit import submit, unless_disconnected
from worker_orcd.jobs.events import Error
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.interface import WorkerInterface

_COUNTED: dict[str, object] = {"messages": [{"role": "user", "content": "Write a haiku."}]}
_EXAMPLE: dict[str, object] = {"max_tokens": 64, **_COUNTED}


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of these resources."""
    routes = APIRouter(prefix="/v1/messages", tags=["Anthropic-compatible"])

    @routes.post(
        "",
        summary="Continue a conversation, at once or as a stream",
        response_class=Response,
        responses=_answers() | schema.errors(400, 401, 404, 409, 413, 429, 503),
        openapi_extra=schema.body(MessagesRequest, _EXAMPLE),
    )
    async def create(request: Request) -> Response:
        asked = MessagesRequest.parse(await request.body())
        asked = asked.superseding(request.headers.get("x-supersedes"))
        model = model_of(worker, asked.model)
        name = fresh_name("msg_", request.headers.get("x-job-id"))
        with error_style(NAMES):
            wanted = asked.wanted(name)
            (stream,) = await submit(worker, request, [wanted.within(worker.policy.ceilings)], may_retry=True)
        events = MessageEvents(stream.job, model, asked, lambda: worker.tool_formats)
        if asked.stream:
            return ReaderResponse(worker, [stream], partial(frames, stream, events))
        with Readers(worker, [stream]):
            await unless_disconnected(request, ended([stream]))
        if isinstance(stream.job.terminal, Error):
            return failed(failure(stream.job, stream.job.terminal), [stream], request)
        return JSONResponse(events.message(), headers=named([stream]))

    @routes.post(
        "/count_tokens",
        summary="The number of tokens of a conversation",
        responses=schema.answer(200, "`input_tokens`", "application/json", schema={"type": "object"})
        | schema.errors(400, 401, 404, 413, 429, 503),
        openapi_extra=schema.body(CountRequest, _COUNTED),
    )
    async def count_tokens(request: Request) -> JSONResponse:
        asked = CountRequest.parse(await request.body())
        model_of(worker, asked.model)
        counting = worker.tokenize(asked.prompt, "messages", correlation_id.get() or "", owner_of(request))
        with error_style(NAMES):
            prepared = await unless_disconnected(request, counting)
        return JSONResponse({"input_tokens": len(prepared.prompt)})

    return routes


def _answers() -> schema.Responses:
    described = schema.answer(
        200, "A `message`, or its events with `stream`", "application/json", schema={"type": "object"}
    )
    described[200]["content"]["text/event-stream"] = {"itemSchema": {"type": "object"}}
    return described
