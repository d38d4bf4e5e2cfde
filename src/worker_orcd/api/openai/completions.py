"""`GET /v1/models`, `POST /v1/completions` and `POST /v1/chat/completions`."""

from collections.abc import Callable, Sequence
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from worker_orcd.api import schema
from worker_orcd.api.error_responses import error_content, error_headers
from worker_orcd.api.openai.chat_bodies import ChatCompletion
from worker_orcd.api.openai.chat_request import ChatRequest
from worker_orcd.api.openai.completion_request import CompletionRequest
from worker_orcd.api.openai.names import error_style, fresh_name
from worker_orcd.api.openai.requests import Completions
from worker_orcd.api.openai.response_bodies import Completion, stream
from worker_orcd.api.sse import KEEP_ALIVE_SEC, ReaderResponse, Readers, named
from worker_orcd.api.submit import submit, unless_disconnected
from worker_orcd.jobs.errors import JobError, invalid
from worker_orcd.jobs.events import Error
from worker_orcd.tool_calls.parser import Parser
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream, any_changed

_CHAT_EXAMPLE: dict[str, object] = {
    "messages": [{"role": "user", "content": "Write a haiku."}],
    "max_tokens": 64,
}
_TEXT_EXAMPLE: dict[str, object] = {"prompt": "The sea is", "max_tokens": 32}


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of these resources."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

    @routes.get("/models", summary="The one model, by each of its names")
    async def models() -> JSONResponse:
        listed = [_model(worker, name) for name in worker.model_names.listed]
        return JSONResponse({"object": "list", "data": listed})

    @routes.get("/models/{model:path}", summary="A model", responses=schema.errors(404))
    async def model(model: str) -> JSONResponse:
        return JSONResponse(_model(worker, model_of(worker, model)))

    @routes.post(
        "/completions",
        summary="Continue a text",
        response_class=Response,
        responses=_answers("text_completion"),
        openapi_extra=schema.body(CompletionRequest, _TEXT_EXAMPLE),
    )
    async def completions(request: Request) -> Response:
        asked = CompletionRequest.parse(await request.body())
        return await answer(worker, request, asked, Completion, "cmpl-")

    @routes.post(
        "/chat/completions",
        summary="Continue a conversation",
        response_class=Response,
        responses=_answers("chat.completion"),
        openapi_extra=schema.body(ChatRequest, _CHAT_EXAMPLE),
    )
    async def chat_completions(request: Request) -> Response:
        asked = ChatRequest.parse(await request.body())

        def parser(*, streams: bool) -> Parser:
            return asked.offer.parser(worker.tool_formats, streams=streams)

        return await answer(worker, request, asked, partial(ChatCompletion, parser=parser), "chatcmpl-")

    return routes


def model_of(worker: WorkerInterface, model: str | None) -> str:
    """The model's name for the response: as in the request, or its own name.

    Raises:
        JobError: `INVALID_REQUEST` with 404: the request names another model.
    """
    if model is not None and model not in worker.model_names:
        raise invalid(f"the model {model[:100]!r} does not exist; see /v1/models", "model", http_status=404)
    return model or worker.model_names.preferred


async def answer(
    worker: WorkerInterface,
    request: Request,
    asked: Completions,
    words: Callable[..., Completion],
    prefix: str,
) -> Response:
    """Submit a request's jobs, and respond with one JSON object or a stream, in the API's format."""
    model = model_of(worker, asked.model)
    asked = asked.superseding(request.headers.get("x-supersedes"))
    name = fresh_name(prefix, request.headers.get("x-job-id"))
    with error_style(asked.names):
        wanted = [one.within(worker.policy.ceilings) for one in asked.wanted(name)]
        streams = await submit(worker, request, wanted, may_retry=True)
    created = int(streams[0].job.accepted.unix)
    body = words(name, model, created, asked.n or 1, asked.include_usage, asked.names, asked.echoed)
    if asked.stream:
        return ReaderResponse(worker, streams, partial(stream, body, streams))
    with Readers(worker, streams):
        await unless_disconnected(request, ended(streams))
    jobs = [one.job for one in streams]
    for job in jobs:
        if isinstance(job.terminal, Error):
            return failed(body.failure(job.terminal, jobs), streams, request)
    return JSONResponse(body.whole(jobs), headers=named(streams))


def failed(failure: JobError, streams: Sequence[JobStream], request: Request) -> Response:
    """The response to a request when one of its jobs did not reach its natural end."""
    headers = {**named(streams), **error_headers(failure, request.url.path)}
    content = error_content(failure, request.url.path)
    return JSONResponse(content, status_code=failure.http_status, headers=headers)


async def ended(streams: Sequence[JobStream]) -> None:
    """Wait until all jobs have reached their natural end, or one has ended otherwise."""
    while any(one.job.live for one in streams) and not any(
        isinstance(one.job.terminal, Error) for one in streams
    ):
        await any_changed(streams, KEEP_ALIVE_SEC)


def _model(worker: WorkerInterface, name: str) -> dict[str, object]:
    context = worker.engine.cells_per_job if worker.engine else None
    return {
        "id": name,
        "object": "model",
        "created": int(worker.started_unix),
        "owned_by": "worker-orcd",
        "max_model_len": context,
        "recommended_sampling": worker.recommended_sampling,
    }


def _answers(kind: str) -> schema.Responses:
    described = schema.answer(
        200, f"A `{kind}`, or its chunks with `stream`", "application/json", schema={"type": "object"}
    )
    described[200]["content"]["text/event-stream"] = {"itemSchema": {}}
    return described | schema.errors(400, 401, 404, 409, 413, 429, 503)
