"""The synchronous client: runs the asynchronous client on a separate thread."""

import atexit
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from worker_orcd.client.async_client import Client
from worker_orcd.client.connection import CANCEL_SEC
from worker_orcd.client.errors import WorkerError
from worker_orcd.client.job import Job, OnProgress
from worker_orcd.client.model import (
    DEFAULT_URL,
    Answer,
    Ending,
    Event,
    Json,
    NarrationEvent,
    Progress,
    Receipt,
    Token,
)

T = TypeVar("T")


class SyncClient:
    """A client of one worker. Thread-safe. The methods are those of `Client`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        correlation_id: str | None = None,
        retries: int = 2,
    ) -> None:
        """As `Client`."""
        self._client = Client(url, api_key=api_key, correlation_id=correlation_id, retries=retries)
        self._running: AbstractContextManager[BlockingPortal] = start_blocking_portal()
        self._portal = self._running.__enter__()
        self._closed = False
        # The thread cannot be ended while the interpreter finalizes; without this, the program would never exit.
        atexit.register(self.close)
        self.url = url
        self.correlation_id = self._client.correlation_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Called automatically at the program's end."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            self._portal.call(self._client.close)
        finally:
            self._running.__exit__(None, None, None)

    def execute(
        self,
        prompt: str,
        *,
        job_id: str | None = None,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        **parameters: Any,
    ) -> "SyncJob":
        """A job, which begins when it is entered with `with`. If the block is left before the job's end, the job is
        cancelled. `on_progress` is called on the client's thread."""
        job = self._client.execute(
            prompt, job_id=job_id, resume=resume, on_progress=on_progress, **parameters
        )
        return SyncJob(self._portal, job)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        job_id: str | None = None,
        on_progress: OnProgress | None = None,
        **parameters: Any,
    ) -> "SyncJob":
        """A job that continues a conversation."""
        return SyncJob(
            self._portal, self._client.chat(messages, job_id=job_id, on_progress=on_progress, **parameters)
        )

    def follow(self, job_id: str, *, after: str | None = None) -> "SyncJob":
        """A further reader of a job."""
        return SyncJob(self._portal, self._client.follow(job_id, after=after))

    def cancel(
        self, job_id: str | None = None, *, group: str | None = None, wait_sec: int = CANCEL_SEC
    ) -> list[Receipt]:
        """Stop a job, or all jobs of a group."""
        return self._wait(partial(self._client.cancel, job_id, group=group, wait_sec=wait_sec))

    def health(self) -> Json:
        """`GET /health`."""
        return self._wait(self._client.health)

    def models(self) -> list[Json]:
        """`GET /v1/models`."""
        return self._wait(self._client.models)

    def jobs(self, *, ended: int = 100) -> list[Json]:
        """`GET /jobs`."""
        return self._wait(partial(self._client.jobs, ended=ended))

    def job(self, job_id: str) -> Json | None:
        """`GET /jobs/{job_id}`."""
        return self._wait(partial(self._client.job, job_id))

    def ended(self, job_id: str, *, within_sec: float = CANCEL_SEC) -> Json | None:
        """A job's record once it has ended."""
        return self._wait(partial(self._client.ended, job_id, within_sec=within_sec))

    def narration(self, *, after: str | None = None) -> Iterator[NarrationEvent]:
        """`GET /narration`."""
        return _each(self._portal, self._client.narration(after=after))

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (200,),
    ) -> Answer:
        """Any other request with a JSON response."""
        return self._wait(
            partial(self._client.ask, method, path, body=body, headers=headers, allowed=allowed)
        )

    def _wait(self, ask: Callable[[], Awaitable[T]]) -> T:
        return _wait(self._portal, ask)


class SyncJob:
    """One job. The members are those of `Job`."""

    def __init__(self, portal: BlockingPortal, job: Job) -> None:
        self._portal = portal
        self._job = job

    def __enter__(self) -> Self:
        """Begin it."""
        try:
            _wait(self._portal, self._job.__aenter__)
        except WorkerError:
            raise
        except BaseException:
            # After Ctrl-C it is unknown whether the job was accepted: exit it, and wait for that.
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Exit the block. A job that has not ended is cancelled."""
        _wait(self._portal, self._job.__aexit__)

    def __iter__(self) -> Iterator[Token]:
        """The job's tokens, as they arrive."""
        return _each(self._portal, self._job.__aiter__())

    def events(self) -> Iterator[Event]:
        """The job's events, as they arrive."""
        return _each(self._portal, self._job.events())

    def cancel(self) -> Receipt | None:
        """Stop the job and wait until it has stopped. May be called from another thread."""
        return _wait(self._portal, self._job.cancel)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._job.job_id

    @property
    def text(self) -> str:
        """The text so far."""
        return self._job.text

    @property
    def started(self) -> Json | None:
        """The data of the `started` event."""
        return self._job.started

    @property
    def progress(self) -> Progress | None:
        """The progress of the prompt."""
        return self._job.progress

    @property
    def ending(self) -> Ending | None:
        """The natural end, once it is reached."""
        return self._job.ending

    @property
    def receipt(self) -> Receipt | None:
        """The receipt, once the job was stopped."""
        return self._job.receipt


def _wait(portal: BlockingPortal, ask: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine on the client's thread. If the wait is interrupted (Ctrl-C), the coroutine is cancelled."""
    doing = portal.start_task_soon(ask)
    try:
        return doing.result()
    except BaseException:
        doing.cancel()
        raise


def _each(portal: BlockingPortal, source: AsyncIterator[T]) -> Iterator[T]:
    """Iterate over an asynchronous iterator on the client's thread."""
    try:
        while found := _wait(portal, partial(_next, source)):
            yield found[0]
    finally:
        with suppress(RuntimeError):  # The client may already be closed.
            portal.call(_close, source)


async def _next(source: AsyncIterator[T]) -> list[T]:
    """The next value in a list, empty at the end, because a StopAsyncIteration cannot cross threads."""
    async for one in source:
        return [one]
    return []


async def _close(source: AsyncIterator[Any]) -> None:
    """Close a generator, which a cancelled wait may still be leaving."""
    for _ in range(100):
        try:
            await source.aclose()  # type: ignore[attr-defined]  # They are generators.
        except RuntimeError:  # The generator is still running.
            await anyio.sleep(0.01)
        else:
            return
