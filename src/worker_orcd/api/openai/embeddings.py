"""`POST /v1/embeddings`: each input is a job that computes a prompt's embedding and generates no tokens."""

import base64
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from worker_orcd.api import schema
from worker_orcd.api.access import owner_of
from worker_orcd.api.openai.completions import failed, model_of
from worker_orcd.api.openai.embeddings_request import EmbeddingJob, EmbeddingsRequest
from worker_orcd.api.openai.names import error_style, fresh_name
from worker_orcd.api.openai.response_bodies import failure_of
from worker_orcd.api.sse import KEEP_ALIVE_SEC, Readers, named
from worker_orcd.api.submit import submit, unless_disconnected
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import Error
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream, any_changed

WINDOW = 64
"""Maximum number of live jobs of one request, so that a large request does not fill the queue."""
_LATER = frozenset({ErrorCode.QUEUE_FULL, ErrorCode.ENGINE_LOST})
"""Refusals that may be over when another job of the same request has ended."""
_EXAMPLE: dict[str, object] = {"input": ["The sea is calm.", "A ship came in."]}
_encoder = msgspec.json.Encoder()


class _Inputs:
    """The inputs of one request: waiting inputs, live jobs, and the embeddings computed so far."""

    def __init__(
        self, worker: WorkerInterface, request: Request, jobs: Sequence[EmbeddingJob], *, as_base64: bool
    ) -> None:
        self._worker = worker
        self._request = request
        self._waiting = deque(jobs)
        self._place = {job.job_id: place for place, job in enumerate(jobs)}
        self._base64 = as_base64
        self._window = min(WINDOW, worker.policy.max_queue)
        self._live: list[JobStream] = []
        self.first: list[JobStream] = []
        """The stream of the first input's job, which has the request's name."""
        self.vectors: list[msgspec.Raw] = [msgspec.Raw()] * len(jobs)
        self.prompt_tokens = 0

    async def computed(self) -> Error | None:
        """Compute all embeddings. Returns the terminal event of the first job that did not reach its natural end.

        Raises:
            JobError: a job is refused.
            ClientDisconnect: the client has left.
        """
        with ExitStack() as readers:
            window = [self._waiting.popleft() for _ in range(min(self._window, len(self._waiting)))]
            self._live = await submit(self._worker, self._request, window, may_retry=True)
            self.first = self._live[:1]
            readers.enter_context(Readers(self._worker, self._live))
            while self._live:
                for stream in [one for one in self._live if not one.job.live]:
                    if isinstance(stream.job.terminal, Error):
                        self.prompt_tokens += sum(one.job.prompt_processed for one in self._live)
                        return stream.job.terminal
                    self._take(stream)
                    self._live.remove(stream)
                more = await self._submit_more()
                if more:
                    readers.enter_context(Readers(self._worker, more))
                    self._live += more
                if all(one.job.live for one in self._live) and self._live:
                    await unless_disconnected(self._request, any_changed(self._live, KEEP_ALIVE_SEC))
        return None

    async def _submit_more(self) -> list[JobStream]:
        """Submit waiting inputs up to the maximum. While the queue is full, or no worker of a fleet answers, submits
        none as long as other jobs of this request are live."""
        more = [
            self._waiting.popleft() for _ in range(min(self._window - len(self._live), len(self._waiting)))
        ]
        if not more:
            return []
        request = self._request
        try:
            return await self._worker.execute(
                more, correlation_id.get() or "", owner_of(request), request.headers
            )
        except JobError as error:
            if error.code not in _LATER or not self._live:
                raise
            self._waiting.extendleft(reversed(more))
            return []

    def _take(self, stream: JobStream) -> None:
        """Keep an embedding in its JSON form. Encoding one at a time avoids blocking the front for a long response."""
        job = stream.job
        raw, job.embedding = job.embedding, b""
        vector: Any = (
            base64.b64encode(raw).decode() if self._base64 else list(struct.unpack(f"<{len(raw) // 4}f", raw))
        )
        place = self._place[job.job_id]
        shown = {"object": "embedding", "index": place, "embedding": vector}
        self.vectors[place] = msgspec.Raw(_encoder.encode(shown))
        self.prompt_tokens += job.prompt_length or 0

    @property
    def usage(self) -> dict[str, int]:
        """The number of prompt tokens, as the API's `usage`."""
        return {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}


def router(worker: WorkerInterface) -> APIRouter:
    """The route of this resource."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

    @routes.post(
        "/embeddings",
        summary="Embed texts, if the model supports it",
        response_class=Response,
        responses=schema.answer(
            200, "A list of embeddings of length one", "application/json", schema={"type": "object"}
        )
        | schema.errors(400, 401, 404, 409, 413, 429, 503),
        openapi_extra=schema.body(EmbeddingsRequest, _EXAMPLE),
    )
    async def embeddings(request: Request) -> Response:
        asked = EmbeddingsRequest.parse(await request.body())
        model = model_of(worker, asked.model)
        name = fresh_name("embd-", request.headers.get("x-job-id"))
        with error_style(asked.names):
            jobs = [one.within(worker.policy.ceilings) for one in asked.wanted(name)]
            inputs = _Inputs(worker, request, jobs, as_base64=asked.encoding_format == "base64")
            failure = await inputs.computed()
        if failure is not None:
            return failed(failure_of(failure, asked.names, inputs.usage), inputs.first, request)
        body = {"object": "list", "data": inputs.vectors, "model": model, "usage": inputs.usage}
        return Response(_encoder.encode(body), media_type="application/json", headers=named(inputs.first))

    return routes
