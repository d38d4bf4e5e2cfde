"""`POST /v1/responses` and what belongs to it.

A response is a job; all that is shown of it follows from the job's record, so a stream picked up again is the same.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from worker_orcd.api import schema
from worker_orcd.api.openai.completions import ended, failed, model_of
from worker_orcd.api.openai.names import error_style, fresh_name
from worker_orcd.api.openai.requests import ResponseJob, ResponseRequest
from worker_orcd.api.openai.response_bodies import failure_of, frame, logprobs_content
from worker_orcd.api.openai.response_object import (
    asked_of,
    head_of,
    message_of,
    response_of,
    response_usage,
    text_part,
)
from worker_orcd.api.openai.stored_responses import continued, shown_stream_of
from worker_orcd.api.sse import ReaderResponse, Readers, named, whole_number
from worker_orcd.api.submit import submit, unless_disconnected
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End, Error, Event, Started, Token
from worker_orcd.jobs.job import Job
from worker_orcd.worker.streams import JobStream, KeepAlive
from worker_orcd.worker.worker import Worker

_NAMES = {"prompt": "input", "max_tokens": "max_output_tokens", "json_schema": "text.format"}
_EXAMPLE: dict[str, object] = {"input": "Write a haiku.", "max_output_tokens": 64}


def router(worker: Worker) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(prefix="/v1/responses", tags=["OpenAI-compatible"])

    @routes.post(
        "",
        summary="Answer, at once, as a stream or in the background",
        response_class=Response,
        responses=_answers() | schema.errors(400, 401, 404, 409, 413, 429, 503),
        openapi_extra=schema.body(ResponseRequest, _EXAMPLE),
    )
    async def create(request: Request) -> Response:
        asked = ResponseRequest.parse(await request.body())
        asked = asked.superseding(request.headers.get("x-supersedes"))
        model = model_of(worker, asked.model)
        offered = request.headers.get("x-job-id")
        name = fresh_name("resp_", offered)
        with error_style(_NAMES):
            earlier = continued(worker, request, asked.previous_response_id)
            wanted = asked.wanted(name, earlier, named_by_client=offered is not None)
            (stream,) = await submit(worker, request, [wanted.within(worker.policy.ceilings)], may_retry=True)
        if asked.stream:
            return ReaderResponse(
                worker, [stream], partial(_frames, stream, ResponseEvents(stream.job, model))
            )
        if not asked.background:
            with Readers(worker, [stream]):
                await unless_disconnected(request, ended([stream]))
            if isinstance(stream.job.terminal, Error):
                return failed(
                    failure_of(stream.job.terminal, _NAMES, response_usage(stream.job)), [stream], request
                )
        return JSONResponse(response_of(stream.job, model), headers=named([stream]))

    @routes.get(
        "/{response_id}",
        summary="A response; with `stream` its events, after `starting_after`",
        response_class=Response,
        responses=_answers() | schema.errors(400, 404, 429),
        openapi_extra=schema.query(
            "starting_after",
            "the last `sequence_number` that was seen; of another use of the id: 404",
            2**53 - 1,
        ),
    )
    async def get(request: Request, response_id: str) -> Response:
        stream = shown_stream_of(worker, request, response_id)
        model = model_of(worker, asked_of(stream.job).model)
        after = whole_number(request.query_params.get("starting_after"), "starting_after")
        if request.query_params.get("stream") == "true":
            teller = ResponseEvents(stream.job, model, after)
            return ReaderResponse(worker, [stream], partial(_frames, stream, teller), follows=True)
        return JSONResponse(response_of(stream.job, model), headers=named([stream]))

    return routes


NUMBERS_PER_USE = 1 << 23
"""Sequence numbers of one use of an id: more than a context has tokens."""
_USES = 1 << 30
"""With these, all sequence numbers are whole numbers of JavaScript's."""


def first_number(job: Job) -> int:
    """The first sequence number of a response.

    An id that the worker drew is used once, and numbers begin at 0. An id that a client chose may be used again, also
    after a restart of the worker: numbers of each use begin at another place, so that none of them continues the
    events of another job.
    """
    if not cast("ResponseJob", job.request).named_by_client:
        return 0
    use = int.from_bytes(hashlib.blake2b(job.incarnation.encode(), digest_size=8).digest())
    return use % (_USES - 1) * NUMBERS_PER_USE + NUMBERS_PER_USE


class ResponseEvents:
    """The events of a response, numbered from `first_number`; those up to `seen` are left out.

    A reader that comes while the job is live gets its end also if `seen` lies beyond, as with the job's own stream.
    """

    def __init__(self, job: Job, model: str, seen: int | None = None) -> None:
        """Begin.

        Raises:
            JobError: `JOB_NOT_FOUND`, the number belongs to another use of the id.
        """
        first = first_number(job)
        if seen is not None and seen // NUMBERS_PER_USE != first // NUMBERS_PER_USE:
            raise JobError(
                ErrorCode.JOB_NOT_FOUND, "this number belongs to another response with the same id"
            )
        self._job = job
        self._waits = job.live
        self._model = model
        self._number = first - 1
        self._seen = self._number if seen is None else seen
        self._text = ""

    def opening(self) -> Iterator[bytes]:
        """What comes before the job's first event."""
        response = {**head_of(self._job, self._model, "queued"), "output": []}
        yield from self._tell("response.created", response=response)

    def emit(self, event: Event) -> Iterator[bytes]:
        """What one event of the job's amounts to."""
        job, model = self._job, self._model
        item = message_of(job, "", "in_progress")
        part: dict[str, Any] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        match event:
            case Started():
                begun = {**head_of(job, model, "in_progress"), "output": []}
                yield from self._tell("response.in_progress", response=begun)
                yield from self._tell(
                    "response.output_item.added", output_index=0, item={**item, "content": []}
                )
                yield from self._tell("response.content_part.added", **part, part=text_part(""))
            case Token(t=piece, logprobs=logprobs) if piece or logprobs:
                self._text += piece
                new = logprobs_content([event])
                yield from self._tell("response.output_text.delta", **part, delta=piece, logprobs=new)
            case End():
                whole = response_of(job, model)
                done = text_part(self._text, logprobs_content(job.events))
                all_of_them = done["logprobs"]
                yield from self._tell(
                    "response.output_text.done", **part, text=self._text, logprobs=all_of_them
                )
                yield from self._tell("response.content_part.done", **part, part=done)
                yield from self._tell("response.output_item.done", output_index=0, item=whole["output"][0])
                self._closing_events(1)
                yield from self._tell(f"response.{whole['status']}", response=whole)
            case Error(code=code, message=message, details=details, openai_code=openai_code):
                failed = code is not ErrorCode.CANCELLED
                self._closing_events(1 + failed)
                if failed:
                    yield from self._tell("response.failed", response=response_of(job, model))
                used = {"phase": details.get("phase"), "usage": response_usage(job)}
                shown = openai_code or code.value
                yield from self._tell("error", code=shown, message=message, param=None, **used)

    def _closing_events(self, events: int) -> None:
        if self._waits or self._seen > self._number + events:
            self._seen = min(self._seen, self._number)

    def _tell(self, kind: str, **more: Any) -> Iterator[bytes]:
        self._number += 1
        if self._number > self._seen:
            yield frame({"type": kind, "sequence_number": self._number, **more}, kind)


async def _frames(stream: JobStream, teller: ResponseEvents, keep_alive: KeepAlive) -> AsyncIterator[bytes]:
    for data in teller.opening():
        yield data
    async for events in stream.read(keep_alive):
        yield b"".join(data for _, event in events for data in teller.emit(event))


def _answers() -> schema.Responses:
    described = schema.answer(
        200, "A `response`, or its events", "application/json", schema={"type": "object"}
    )
    described[200]["content"]["text/event-stream"] = {"itemSchema": {"type": "object"}}
    return described
