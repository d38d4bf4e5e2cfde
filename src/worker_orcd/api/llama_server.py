"""`POST /infill` and `POST /completion`: fill a gap or continue a text, compatible with llama-server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response

from worker_orcd.api import schema
from worker_orcd.api.openai.completions import answer
from worker_orcd.api.openai.llama_server_requests import InfillRequest, RawCompletionRequest
from worker_orcd.api.openai.response_bodies import Completion, text_of
from worker_orcd.jobs.clock import millis
from worker_orcd.jobs.events import End, Event, StopReason
from worker_orcd.jobs.job import Job
from worker_orcd.worker.interface import WorkerInterface

_INFILL_EXAMPLE: dict[str, object] = {
    "input_prefix": "def add(a, b):\n    ",
    "input_suffix": "\n\nprint(add(1, 2))\n",
    "n_predict": 16,
}
_EXAMPLE: dict[str, object] = {"prompt": "The sea is", "n_predict": 16}
_STOP_TYPES: dict[StopReason, str] = {"stop": "eos", "stop_sequence": "word", "length": "limit"}


@dataclass(frozen=True, slots=True)
class RawCompletion(Completion):
    """The response bodies of these endpoints."""

    fields: Sequence[str] = ()
    """The requested fields of the response; empty: all."""
    last: ClassVar[bytes] = b""

    def whole(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The non-streaming response."""
        return self._end(jobs[0], text_of(jobs[0]))

    def chunks(self, place: int, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of one event. The end has figures and is made by `closing`."""
        if not isinstance(event, End):
            yield from super(RawCompletion, self).chunks(place, event)

    def closing(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The last chunk of a stream with a natural end."""
        yield self._end(jobs[0], "")

    def _end(self, job: Job, content: str) -> dict[str, Any]:
        reason = job.terminal.stop_reason if isinstance(job.terminal, End) else "length"
        body = {
            "index": 0,
            "content": content,
            "stop": True,
            "stop_type": _STOP_TYPES[reason],
            "model": self.model,
            "tokens_predicted": job.tokens_out,
            "tokens_evaluated": job.prompt_length,
            "tokens_cached": job.prompt_cached,
            "truncated": False,
            "has_new_line": "\n" in text_of(job),
            "timings": _timings(job),
        }
        return _selected(body, self.fields) if self.fields else body

    def _delta(self, text: str) -> dict[str, Any]:
        return {"content": text}

    def _chunk(
        self, place: int, delta: dict[str, Any], finish: str | None, events: Sequence[Event] = ()
    ) -> dict[str, Any]:
        more = {} if (logprobs := self._logprobs(place, events)) is None else {"logprobs": logprobs}
        return {"index": place, **delta, "stop": finish is not None, **more}


def _timings(job: Job) -> dict[str, float]:
    begun, first = job.started_at, job.first_token_at
    prompt_ms = 0.0 if begun is None else millis(begun, first or job.ended_at or begun)
    prompt_n = job.prompt_processed - job.prompt_cached
    return {
        "cache_n": job.prompt_cached,
        **_rate("prompt", prompt_n, prompt_ms),
        **_rate("predicted", job.tokens_out, job.decode_time_ms),
    }


def _rate(name: str, tokens: int, duration_ms: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": duration_ms,
        f"{name}_per_token_ms": duration_ms / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / duration_ms * 1000 if duration_ms else 0.0,
    }


def _selected(body: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The fields with these paths, by path. As in llama-server, unknown fields are left out."""
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = body
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[path] = value
    return found


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of these resources."""
    routes = APIRouter(tags=["llama-server-compatible"])

    @routes.post(
        "/infill",
        summary="Fill the gap between two texts, as in llama-server",
        response_class=Response,
        responses=_answers(),
        openapi_extra=schema.body(InfillRequest, _INFILL_EXAMPLE),
    )
    async def infill(request: Request) -> Response:
        return await _answered(worker, request, InfillRequest.parse(await request.body()), "infill-")

    @routes.post("/completions", include_in_schema=False)  # llama-server has both names.
    @routes.post(
        "/completion",
        summary="Continue a text, as in llama-server",
        response_class=Response,
        responses=_answers(),
        openapi_extra=schema.body(RawCompletionRequest, _EXAMPLE),
    )
    async def completion(request: Request) -> Response:
        return await _answered(worker, request, RawCompletionRequest.parse(await request.body()), "cmpl-")

    return routes


async def _answered(
    worker: WorkerInterface, request: Request, asked: InfillRequest | RawCompletionRequest, prefix: str
) -> Response:
    words = partial(RawCompletion, fields=asked.response_fields)
    return await answer(worker, request, asked, words, prefix)


def _answers() -> schema.Responses:
    described = schema.answer(
        200, "`content` and figures, or chunks with `stream`", "application/json", schema={"type": "object"}
    )
    described[200]["content"]["text/event-stream"] = {"itemSchema": {}}
    return described | schema.errors(400, 401, 404, 409, 413, 429, 503)
