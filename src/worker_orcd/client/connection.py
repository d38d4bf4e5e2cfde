"""The connection to a worker: requests, streams and retries. All failures are raised as client errors."""

import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import httpx2

from worker_orcd.client import shapes
from worker_orcd.client.errors import WorkerError, WorkerRefused, WorkerUnreachable
from worker_orcd.client.model import Answer, Json, Receipt

CANCEL_SEC = 7
"""How long to wait for a cancel's response: a little longer than the worker's five seconds."""
ANSWER_SEC = 10.0
SILENCE_SEC = 60.0
"""The longest time without data in a stream; the worker sends a comment every 15 s."""
LATEST_SEC = 30.0
"""The longest `Retry-After` for which the client waits."""
_CANCEL_RETRIES = 2
_FIRST_PAUSE_SEC = 0.1
LONGEST_PAUSE_SEC = 3.0

T = TypeVar("T")
Message = httpx2.ServerSentEvent


class NothingMore(Exception):
    """The reader has already received the whole stream."""


class Connection:
    """The connections to one worker. Every method may raise `WorkerUnreachable` and `WorkerRefused`."""

    def __init__(self, url: str, *, api_key: str | None, correlation_id: str | None, retries: int) -> None:
        self.url = url
        self.correlation_id = correlation_id or uuid.uuid4().hex
        self._retries = retries
        headers = {"X-Correlation-Id": self.correlation_id}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        with self.clear_errors():
            self._http = httpx2.AsyncClient(
                base_url=url,
                headers=headers,
                timeout=ANSWER_SEC,
                trust_env=False,
                verify=_certificates(url),
                # Unlimited, so that a cancel never waits for a connection, however many jobs stream.
                limits=httpx2.Limits(max_connections=None),
            )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        allowed: tuple[int, ...] = (200,),
        shape: Any = None,
        **more: Any,
    ) -> Answer:
        """Send a request whose response is JSON of this shape. Statuses other than the allowed ones are refusals."""
        with self.clear_errors():
            answer = await self._send(method, path, more)
            if answer.status_code not in allowed:
                raise self._refusal(answer)
            return Answer(answer.status_code, shapes.decoded(answer.text, shape))

    async def cancel(self, named: Json, wait_sec: int) -> list[Receipt]:
        """`POST /cancel`. Returns the receipts of the stopped jobs, if they ended within `wait_sec`."""
        headers = {"Prefer": f"wait={wait_sec}"} if wait_sec else {}
        answer = await self.ask(
            "POST",
            "/cancel",
            json=named,
            headers=headers,
            timeout=ANSWER_SEC + wait_sec,
            allowed=(200, 202),
            shape=shapes.CANCELLED,
        )
        jobs = answer.body.get("jobs") or ([answer.body] if answer.body.get("receipt") else [])
        return [Receipt.of(one["receipt"], one.get("job_id") or "") for one in jobs]

    async def record(self, job_id: str) -> Json | None:
        """`GET /jobs/{job_id}`. Returns None for an unknown job."""
        answer = await self.ask("GET", f"/jobs/{in_path(job_id)}", allowed=(200, 404))
        if answer.status == 404:
            return None
        with self.clear_errors():
            record: Json = shapes.checked(answer.body, shapes.RECORD)
        return record

    async def begin(
        self, open_stream: AsyncExitStack, path: str, decode: Callable[[Message], Iterable[T]], **more: Any
    ) -> AsyncIterator[T]:
        """`POST` a request whose response is a stream. Retries if the worker certainly did not accept the request."""
        attempt = 0
        while True:
            try:
                return await self.open(open_stream, "POST", path, decode, **more)
            except WorkerError as error:
                pause_sec = _sec_until_again(error, attempt)
                if pause_sec is None or attempt >= self._retries:
                    raise
            await anyio.sleep(pause_sec)
            attempt += 1

    async def open(
        self,
        open_stream: AsyncExitStack,
        method: str,
        path: str,
        decode: Callable[[Message], Iterable[T]],
        **more: Any,
    ) -> AsyncIterator[T]:
        """Open a stream, which stays open as long as `open_stream`. Returns its messages, decoded by `decode`.

        Raises:
            NothingMore: there is no event after the position that was sent.
        """
        with self.clear_errors():
            timeout = httpx2.Timeout(ANSWER_SEC, read=SILENCE_SEC)
            source = await open_stream.enter_async_context(
                self._http.sse(path, method=method, timeout=timeout, **more)
            )
            if source.response.status_code == 204:
                raise NothingMore
            if source.response.status_code != 200:
                await source.response.aread()
                raise self._refusal(source.response)
        return self._read(source, decode)

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        """In this block, raise all failures as client errors."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise WorkerUnreachable(f"no worker at {self.url}: {error}", sent=False) from error
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise WorkerUnreachable(
                f"lost the worker at {self.url}: {what}", correlation_id=self.correlation_id
            ) from error
        except (httpx2.SSEError, KeyError, TypeError, ValueError) as error:
            raise WorkerUnreachable(f"the server at {self.url} is not a worker: {error!r}") from error

    async def _send(self, method: str, path: str, more: Json) -> httpx2.Response:
        """Send a request. Retries if the connection cannot be made, or if it breaks and the request is idempotent.

        A cancel is always retried: a job must not continue because a connection had just been closed.
        """
        cancel = path == "/cancel"
        retries = max(self._retries, _CANCEL_RETRIES) if cancel else self._retries
        attempt = 0
        while True:
            try:
                return await self._http.request(method, path, **more)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if attempt >= retries:
                    raise
            except (httpx2.NetworkError, httpx2.RemoteProtocolError):
                if attempt >= retries or not (cancel or method == "GET"):
                    raise
            await anyio.sleep(pause_sec(attempt))
            attempt += 1

    async def _read(
        self, source: httpx2.EventSource, decode: Callable[[Message], Iterable[T]]
    ) -> AsyncIterator[T]:
        with self.clear_errors():
            async for message in source:
                for one in decode(message):
                    yield one

    def _refusal(self, answer: httpx2.Response) -> WorkerRefused:
        error = shapes.decoded(answer.text, shapes.REFUSAL)["error"]
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


def in_path(job_id: str) -> str:
    """A job id as one segment of a path. Escapes `..`, too, which an HTTP client would otherwise resolve."""
    return quote(job_id, safe="", errors="surrogatepass").replace(".", "%2E")


def pause_sec(attempt: int) -> float:
    """How long to wait after this many failed attempts."""
    return min(_FIRST_PAUSE_SEC * 2.0**attempt, LONGEST_PAUSE_SEC)


def _sec_until_again(error: WorkerError, attempt: int) -> float | None:
    """Seconds until a retry after this error; None: no retry."""
    match error:
        case WorkerRefused(retriable=True, retry_after_sec=after):
            wait_sec = pause_sec(attempt) if after is None else after
            return wait_sec if wait_sec <= LATEST_SEC else None
        case WorkerUnreachable(sent=False):
            return pause_sec(attempt)
        case _:
            return None


def _certificates(url: str) -> ssl.SSLContext | bool:
    """The trusted certificates. They are not loaded for plain HTTP, because loading takes 70 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http://") else True
