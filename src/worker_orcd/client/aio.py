"""The asynchronous client."""

import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Self
from urllib.parse import quote

import anyio
import httpx2

from worker_orcd.client.errors import JobCancelled, JobFailed, WorkerError, WorkerRefused, WorkerUnreachable
from worker_orcd.client.model import DEFAULT_URL, Ending, Event, Json, Receipt, Token

CANCEL_SEC = 7
"""A cancel is finished within the worker's five seconds; its answer is waited for a little longer."""
ANSWER_SEC = 10.0
SILENCE_SEC = 60.0
"""The longest silence of a stream; the worker sends a comment every 15 s."""
RESUME_SEC = 30.0
"""For so long after a break a stream is tried to be picked up again."""
_FIRST_PAUSE_SEC = 0.1
_LONGEST_PAUSE_SEC = 3.0


class Client:
    """A worker, as a client sees it. Every method may raise `WorkerUnreachable` and `WorkerRefused`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        correlation_id: str | None = None,
        retries: int = 2,
    ) -> None:
        """Make one; nothing is asked yet.

        Args:
            url: where the worker listens.
            api_key: sent as `Authorization: Bearer`.
            correlation_id: under which the worker narrates everything that this client asks; left out: drawn.
            retries: how often a request is tried again that could not be sent, or was refused for now.
        """
        self.url = url
        self.correlation_id = correlation_id or uuid.uuid4().hex
        self._retries = retries
        headers = {"X-Correlation-Id": self.correlation_id}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        with self.clear_errors():
            self._http = httpx2.AsyncClient(
                base_url=url, headers=headers, timeout=ANSWER_SEC, trust_env=False
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    def execute(
        self, prompt: str, *, job_id: str | None = None, resume: bool = False, **parameters: Any
    ) -> "Job":
        """A job; it begins when it is entered with `async with`, and is cancelled when that is left before its end.

        Args:
            prompt: the prompt.
            job_id: what it is called; left out: drawn.
            resume: pick the stream up again when it breaks. The job then goes on without a reader: should this
                process die, the job runs until its end or its deadline.
            parameters: further fields of `POST /execute`: `max_tokens`, `temperature`, `seed`, `stop` …
        """
        body = {"job_id": job_id or f"py-{secrets.token_hex(8)}", "prompt": prompt, **parameters}
        if resume:
            body["on_disconnect"] = "continue"
        return Job(self, body["job_id"], body, resume=resume)

    def follow(self, job_id: str, *, after: int | None = None) -> "Job":
        """Another reader of a job, from its start or after the event with that number. Leaving it cancels nothing."""
        return Job(self, job_id, None, resume=True, after=after)

    async def cancel(
        self, job_id: str | None = None, *, group: str | None = None, wait_sec: int = CANCEL_SEC
    ) -> list[Receipt]:
        """Stop a job, or all of a group; harmless whatever they are.

        Returns:
            What the stops did; empty if there was nothing to stop, or it took longer than `wait_sec`.
        """
        named = {"job_id": job_id} if group is None else {"group": group}
        headers = {"Prefer": f"wait={wait_sec}"} if wait_sec else {}
        timeout = ANSWER_SEC + wait_sec
        answer = await self._ask(
            "POST", "/cancel", json=named, headers=headers, timeout=timeout, allowed=(200, 202)
        )
        body = answer.json()
        jobs = body.get("jobs", [body] if "receipt" in body else [])
        return [Receipt.of(one["receipt"]) for one in jobs]

    async def health(self) -> Json:
        """`GET /health`, however the worker is."""
        health: Json = (await self._ask("GET", "/health", allowed=(200, 503))).json()
        return health

    async def jobs(self) -> list[Json]:
        """`GET /jobs`: the records of live jobs, oldest first, then of ended ones, latest first."""
        records: list[Json] = (await self._ask("GET", "/jobs")).json()["jobs"]
        return records

    async def job(self, job_id: str) -> Json | None:
        """`GET /jobs/{job_id}`: a job's record, or None when no such job is known."""
        answer = await self._ask("GET", f"/jobs/{_in_path(job_id)}", allowed=(200, 404))
        record: Json = answer.json()
        return record if answer.status_code == 200 else None

    async def _ask(
        self, method: str, path: str, *, allowed: tuple[int, ...] = (200,), **more: Any
    ) -> httpx2.Response:
        with self.clear_errors():
            answer = await self._send(method, path, more)
            if answer.status_code not in allowed:
                raise self._refusal(answer)
            return answer

    async def _send(self, method: str, path: str, more: Json) -> httpx2.Response:
        attempt = 0
        while True:
            try:
                return await self._http.request(method, path, **more)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if attempt >= self._retries:
                    raise
            await anyio.sleep(_pause_sec(attempt))
            attempt += 1

    # For its jobs.

    async def begin(self, body: Json, open_stream: AsyncExitStack) -> AsyncIterator[Event]:
        """`POST /execute`: once it is taken, the job's events. What was refused for now is tried again."""
        for attempt in range(self._retries + 1):
            try:
                return await self._events(open_stream, "POST", "/execute", json=body)
            except WorkerRefused as refused:
                if not refused.retriable or attempt == self._retries:
                    raise
                await anyio.sleep(refused.retry_after_sec or _pause_sec(attempt))
            except WorkerUnreachable as error:
                if attempt == self._retries or not isinstance(
                    error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout
                ):
                    raise
                await anyio.sleep(_pause_sec(attempt))
        raise AssertionError("the last attempt returns or raises")

    async def pick_up(
        self, job_id: str, after: int | None, open_stream: AsyncExitStack
    ) -> AsyncIterator[Event]:
        """`GET /jobs/{job_id}/events`."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        return await self._events(open_stream, "GET", f"/jobs/{_in_path(job_id)}/events", headers=headers)

    async def _events(
        self, open_stream: AsyncExitStack, method: str, path: str, **more: Any
    ) -> AsyncIterator[Event]:
        with self.clear_errors():
            timeout = httpx2.Timeout(ANSWER_SEC, read=SILENCE_SEC)
            source = await open_stream.enter_async_context(
                self._http.sse(path, method=method, timeout=timeout, **more)
            )
            if source.response.status_code != 200:
                await source.response.aread()
                raise self._refusal(source.response)
        return self._read(source)

    async def _read(self, source: Any) -> AsyncIterator[Event]:
        with self.clear_errors():
            terminal = False
            async for sse in source:
                event = Event(int(sse.id), sse.event, json.loads(sse.data))
                terminal = event.terminal
                yield event
        if not terminal:
            raise WorkerUnreachable(
                "the stream broke off before the job's end", correlation_id=self.correlation_id
            )

    def _refusal(self, answer: httpx2.Response) -> WorkerRefused:
        error = answer.json()["error"]
        after = answer.headers.get("Retry-After")
        return WorkerRefused(
            error["code"],
            error["message"],
            status=answer.status_code,
            param=error.get("param"),
            retriable=error["retriable"],
            retry_after_sec=None if after is None else float(after),
            correlation_id=answer.headers.get("X-Correlation-Id", self.correlation_id),
        )

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Whatever goes wrong on the way is one of ours."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise WorkerUnreachable(f"no worker at {self.url}: {error}") from error
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise WorkerUnreachable(
                f"lost the worker at {self.url}: {what}", correlation_id=self.correlation_id
            ) from error
        except (json.JSONDecodeError, httpx2.SSEError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise WorkerUnreachable(f"what answers at {self.url} is not a worker: {error!r}") from error


class Job:
    """One job and this client's reading of it.

    Attributes:
        job_id: what it is called.
        text: what it has said so far.
        started: data of its `started` event: model, seed.
        ending: its natural end, once it is there.
        receipt: what a stop did, once there was one.
    """

    def __init__(
        self, client: Client, job_id: str, body: Json | None, *, resume: bool, after: int | None = None
    ) -> None:
        self.job_id = job_id
        self.text = ""
        self.started: Json | None = None
        self.ending: Ending | None = None
        self.receipt: Receipt | None = None
        self._client = client
        self._body = body
        self._resume = resume
        self._last_id = after
        self._over = False
        self._open = AsyncExitStack()
        self._source: AsyncIterator[Event] | None = None

    async def __aenter__(self) -> Self:
        """Begin it.

        Raises:
            WorkerRefused: it is refused.
        """
        try:
            await self._begin()
        except WorkerRefused:
            await self._leave(cancel=False)
            raise
        except BaseException:
            # Interrupted while nobody knows whether it was taken.
            await self._leave(cancel=self._body is not None)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave it. Before its end it is cancelled, if it is ours."""
        await self._leave(cancel=self._body is not None and not self._over)

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Its tokens, as they come.

        Raises:
            JobCancelled: it was stopped, by whomever.
            JobFailed: it ended with an error.
        """
        async for event in self.events():
            match event.name:
                case "token":
                    yield Token(event.data["i"], event.data["t"])
                case "error":
                    raise await self._failure(event.data)

    async def events(self) -> AsyncIterator[Event]:
        """Its events as they come, the terminal one included."""
        while not self._over:
            if self._source is None:
                raise RuntimeError("a job begins when it is entered: async with client.execute(...) as job")
            try:
                async for event in self._source:
                    self._take(event)
                    yield event
            except WorkerUnreachable as broken:
                if not self._resume:
                    raise
                await self._pick_up(broken)

    async def cancel(self) -> Receipt | None:
        """Stop it and wait until it has stopped; harmless at any time.

        Returns:
            What the stop did; None if it had ended by itself.
        """
        receipts = await self._client.cancel(self.job_id)
        self.receipt = receipts[0] if receipts else self.receipt
        return self.receipt

    # Inside

    async def _begin(self) -> None:
        if self._body is None:
            self._source = await self._client.pick_up(self.job_id, self._last_id, self._open)
            return
        try:
            self._source = await self._client.begin(self._body, self._open)
        except WorkerUnreachable as error:
            # It may have been taken, and only its answer was lost: then it is there to be picked up.
            if not self._resume or isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise
            await self._pick_up(error)

    async def _pick_up(self, broken: WorkerError) -> None:
        deadline, attempt = time.monotonic() + RESUME_SEC, 0
        while True:
            await self._open.aclose()
            try:
                self._source = await self._client.pick_up(self.job_id, self._last_id, self._open)
            except WorkerError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise broken from error
            else:
                return
            await anyio.sleep(_pause_sec(attempt))
            attempt += 1

    def _take(self, event: Event) -> None:
        expected = 0 if self._last_id is None else self._last_id + 1
        if event.id != expected:
            raise WorkerError("INTERNAL", f"event {event.id} came instead of {expected}")
        self._last_id = event.id
        match event.name:
            case "started":
                self.started = event.data
            case "token":
                self.text += event.data["t"]
            case "end":
                known = ("tokens_out", "decode_time_ms", "stop_reason")
                self.ending = Ending(**{name: event.data[name] for name in known})
        self._over = event.terminal

    async def _failure(self, data: Json) -> JobFailed:
        client = self._client
        if data["code"] != "CANCELLED":
            return JobFailed(
                data["code"],
                data["message"],
                correlation_id=client.correlation_id,
                retriable=data["retriable"],
            )
        if self.receipt is None:
            record = await client.job(self.job_id)
            if record is not None and record["receipt"] is not None:
                self.receipt = Receipt.of(record["receipt"])
        return JobCancelled(
            data["message"],
            reason=data["reason"],
            phase=data["phase"],
            receipt=self.receipt,
            correlation_id=client.correlation_id,
        )

    async def _leave(self, *, cancel: bool) -> None:
        """Never held up for long, and not by the cancellation that may be the reason for leaving."""
        with anyio.move_on_after(CANCEL_SEC, shield=True):
            try:
                if cancel:
                    await self.cancel()
            except WorkerError:
                pass  # It cannot be told any more; what it does without a reader is the worker's to know.
            finally:
                await self._open.aclose()


def _in_path(job_id: str) -> str:
    """A job id as one step of a path, `..` included, which an HTTP client would otherwise walk."""
    return quote(job_id, safe="").replace(".", "%2E")


def _pause_sec(attempt: int) -> float:
    return min(_FIRST_PAUSE_SEC * 2.0**attempt, _LONGEST_PAUSE_SEC)
