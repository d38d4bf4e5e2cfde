"""`POST /infill`: fill the gap between two texts, in the words of llama-server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response

from worker_orcd.api import schema
from worker_orcd.api.openai.completions import answer
from worker_orcd.api.openai.infill_request import InfillRequest
from worker_orcd.api.openai.response_bodies import Completion, text_of
from worker_orcd.jobs.clock import millis
from worker_orcd.jobs.events import End, Event, StopReason
from worker_orcd.jobs.job import Job
from worker_orcd.worker.interface import WorkerInterface

_EXAMPLE: dict[str, object] = {
    "input_prefix": "def add(a, b):\n    ",
    "input_suffix": "\n\nprint(add(1, 2))\n",
    "n_predict": 16,
}
_STOP_TYPES: dict[StopReason, str] = {"stop": "eos", "stop_sequence": "word", "length": "limit"}


@dataclass(frozen=True, slots=True)
class Infill(Completion):
    """The words of `POST /infill`."""

    last: ClassVar[bytes] = b""

    def whole(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        return self._end(jobs[0], text_of(jobs[0]))

    def chunks(self, place: int, event: Event) -> Iterator[dict[str, Any]]:
        """What one event adds to the stream. Its end comes with the figures, in `closing`."""
        if not isinstance(event, End):
            yield from super(Infill, self).chunks(place, event)

    def closing(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The last chunk of a stream that came to its natural end."""
        yield self._end(jobs[0], "")

    def _end(self, job: Job, content: str) -> dict[str, Any]:
        reason = job.terminal.stop_reason if isinstance(job.terminal, End) else "length"
        begun, first = job.started_at, job.first_token_at
        prompt_ms = 0.0 if begun is None else millis(begun, first or job.ended_at or begun)
        return {
            "index": 0,
            "content": content,
            "stop": True,
            "stop_type": _STOP_TYPES[reason],
            "model": self.model,
            "tokens_predicted": job.tokens_out,
            "tokens_evaluated": job.prompt_length,
            "tokens_cached": job.prompt_cached,
            "truncated": False,
            "timings": {
                "cache_n": job.prompt_cached,
                "prompt_n": job.prompt_processed - job.prompt_cached,
                "prompt_ms": prompt_ms,
                "predicted_n": job.tokens_out,
                "predicted_ms": job.decode_time_ms,
            },
        }

    def _delta(self, text: str) -> dict[str, Any]:
        return {"content": text}

    def _chunk(
        self, place: int, delta: dict[str, Any], finish: str | None, events: Sequence[Event] = ()
    ) -> dict[str, Any]:
        more = {} if (logprobs := self._logprobs(place, events)) is None else {"logprobs": logprobs}
        return {"index": place, **delta, "stop": finish is not None, **more}


def router(worker: WorkerInterface) -> APIRouter:
    """The route of this resource."""
    routes = APIRouter(tags=["OpenAI-compatible"])

    @routes.post(
        "/infill",
        summary="Fill the gap between two texts, as llama-server has it",
        response_class=Response,
        responses=_answers(),
        openapi_extra=schema.body(InfillRequest, _EXAMPLE),
    )
    async def infill(request: Request) -> Response:
        asked = InfillRequest.parse(await request.body())
        return await answer(worker, request, asked, Infill, "infill-")

    return routes


def _answers() -> schema.Responses:
    described = schema.answer(
        200, "`content` and figures, or chunks with `stream`", "application/json", schema={"type": "object"}
    )
    described[200]["content"]["text/event-stream"] = {"itemSchema": {}}
    return described | schema.errors(400, 401, 404, 409, 413, 429, 503)
