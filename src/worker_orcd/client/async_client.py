"""The asynchronous client."""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

import anyio

from worker_orcd.client import decoding, shapes
from worker_orcd.client.connection import CANCEL_SEC, Connection
from worker_orcd.client.job import Job, OnProgress, Opening
from worker_orcd.client.model import DEFAULT_URL, Answer, Json, NarrationEvent, Receipt

_LOOK_EVERY_SEC = 0.02


class Client:
    """A client of one worker. Every method may raise `WorkerUnreachable` and `WorkerRefused`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        correlation_id: str | None = None,
        retries: int = 2,
    ) -> None:
        """Make a client. Sends no request yet.

        Args:
            url: the worker's address.
            api_key: sent as `Authorization: Bearer`.
            correlation_id: the correlation id of all requests of this client; default: random.
            retries: how often to retry a request that could not be sent, or was refused temporarily.
        """
        self._connection = Connection(url, api_key=api_key, correlation_id=correlation_id, retries=retries)
        self.url = url
        self.correlation_id = self._connection.correlation_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    def execute(
        self,
        prompt: str,
        *,
        job_id: str | None = None,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        **parameters: Any,
    ) -> Job:
        """A job, which begins when it is entered with `async with`. If the block is left before the job's end, the job
        is cancelled.

        Args:
            prompt: the prompt.
            job_id: the job's id; default: random.
            resume: resume the stream if it breaks. The job then continues without a reader; so if this process dies,
                the job runs until its end or its time limit.
            on_progress: called with the progress of the prompt, at most four times a second.
            parameters: further fields of `POST /execute`: `max_tokens`, `temperature`, `seed`, `stop` …
        """
        body = {"job_id": job_id or _drawn_id(), "prompt": prompt, **parameters}
        if resume:
            body["on_disconnect"] = "continue"
        if on_progress is not None:
            body["progress"] = True
        opening = Opening("/execute", body)
        return Job(self._connection, body["job_id"], opening, resume=resume, on_progress=on_progress)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        job_id: str | None = None,
        on_progress: OnProgress | None = None,
        **parameters: Any,
    ) -> Job:
        """A job that continues a conversation; otherwise like `execute`.

        Args:
            messages: the conversation, each `{"role": "system" | "user" | "assistant", "content": …}`.
            job_id: the job's id; default: random.
            on_progress: as in `execute`.
            parameters: further fields of `POST /v1/chat/completions`: `max_tokens`, `temperature`, `seed` …
        """
        name = job_id or _drawn_id()
        body = {
            "messages": [dict(message) for message in messages],
            **parameters,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if on_progress is not None:
            body["return_progress"] = True
        opening = Opening("/v1/chat/completions", body, {"X-Job-Id": name}, decoding.Chunks(name))
        return Job(self._connection, name, opening, resume=False, on_progress=on_progress)

    def follow(self, job_id: str, *, after: str | None = None) -> Job:
        """A further reader of a job, from its start or after the event with this id. Leaving it does not stop the
        job."""
        return Job(self._connection, job_id, None, resume=True, after=after)

    async def cancel(
        self, job_id: str | None = None, *, group: str | None = None, wait_sec: int = CANCEL_SEC
    ) -> list[Receipt]:
        """Stop a job, or all jobs of a group. Harmless in any state.

        Returns:
            The receipts; empty if there was nothing to stop, or it took longer than `wait_sec`.
        """
        return await self._connection.cancel(
            {"job_id": job_id} if group is None else {"group": group}, wait_sec
        )

    async def health(self) -> Json:
        """`GET /health`, whether the worker is healthy or not."""
        answer = await self._connection.ask("GET", "/health", allowed=(200, 503), shape=shapes.HEALTH)
        health: Json = answer.body
        return health

    async def models(self) -> list[Json]:
        """`GET /v1/models`: the model by each of its names."""
        models: list[Json] = (await self._connection.ask("GET", "/v1/models", shape=shapes.MODELS)).body[
            "data"
        ]
        return models

    async def jobs(self, *, ended: int = 100) -> list[Json]:
        """`GET /jobs`: the records of live jobs, oldest first, then of at most `ended` ended jobs, latest first."""
        answer = await self._connection.ask("GET", f"/jobs?limit={ended}", shape=shapes.RECORDS)
        records: list[Json] = answer.body["jobs"]
        return records

    async def job(self, job_id: str) -> Json | None:
        """`GET /jobs/{job_id}`: a job's record, or None for an unknown job."""
        return await self._connection.record(job_id)

    async def ended(self, job_id: str, *, within_sec: float = CANCEL_SEC) -> Json | None:
        """A job's record once it has ended, or its current record after `within_sec`; None for an unknown job."""
        deadline = time.monotonic() + within_sec
        while True:
            record = await self.job(job_id)
            if record is None or record["ended_ms"] is not None or time.monotonic() > deadline:
                return record
            await anyio.sleep(_LOOK_EVERY_SEC)

    async def narration(self, *, after: str | None = None) -> AsyncGenerator[NarrationEvent, None]:
        """`GET /narration`: the worker's latest log events, then new ones, until it shuts down.

        Args:
            after: the `id` of the last event received, to continue after it. An id that is no longer kept is ignored.
        """
        headers = {} if after is None else {"Last-Event-ID": after}
        async with AsyncExitStack() as open_stream:
            event = await self._connection.open(
                open_stream, "GET", "/narration", decoding.narrated, headers=headers
            )
            async for one in event:
                yield one

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (200,),
    ) -> Answer:
        """Any other request with a JSON response. Statuses that are not allowed raise `WorkerRefused`."""
        return await self._connection.ask(method, path, json=body, headers=headers, allowed=allowed)


def _drawn_id() -> str:
    return f"py-{secrets.token_hex(8)}"
