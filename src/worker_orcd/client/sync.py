"""The synchronous face: the asynchronous client on a thread of its own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from worker_orcd.client.aio import CANCEL_SEC, Client, Job
from worker_orcd.client.model import DEFAULT_URL, Ending, Event, Json, Receipt, Token

T = TypeVar("T")


class SyncClient:
    """A worker, as a client sees it; may be used from several threads. All is as in `Client`."""

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
        self.url = url
        self.correlation_id = self._client.correlation_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections and end its thread."""
        try:
            self._portal.call(self._client.close)
        finally:
            self._running.__exit__(None, None, None)

    def execute(
        self, prompt: str, *, job_id: str | None = None, resume: bool = False, **parameters: Any
    ) -> "SyncJob":
        """A job; it begins when it is entered with `with`, and is cancelled when that is left before its end."""
        return SyncJob(self._portal, self._client.execute(prompt, job_id=job_id, resume=resume, **parameters))

    def follow(self, job_id: str, *, after: int | None = None) -> "SyncJob":
        """Another reader of a job."""
        return SyncJob(self._portal, self._client.follow(job_id, after=after))

    def cancel(
        self, job_id: str | None = None, *, group: str | None = None, wait_sec: int = CANCEL_SEC
    ) -> list[Receipt]:
        """Stop a job, or all of a group."""

        async def cancel() -> list[Receipt]:
            return await self._client.cancel(job_id, group=group, wait_sec=wait_sec)

        return self._portal.call(cancel)

    def health(self) -> Json:
        """`GET /health`."""
        return self._portal.call(self._client.health)

    def jobs(self) -> list[Json]:
        """`GET /jobs`."""
        return self._portal.call(self._client.jobs)

    def job(self, job_id: str) -> Json | None:
        """`GET /jobs/{job_id}`."""
        return self._portal.call(self._client.job, job_id)


class SyncJob:
    """One job, as `Job`."""

    def __init__(self, portal: BlockingPortal, job: Job) -> None:
        self._portal = portal
        self._job = job

    def __enter__(self) -> Self:
        """Begin it."""
        self._portal.call(self._job.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it. Before its end it is cancelled."""
        self._portal.call(self._job.__aexit__, None, None, None)

    def __iter__(self) -> Iterator[Token]:
        """Its tokens, as they come."""
        return self._each(self._job.__aiter__())

    def events(self) -> Iterator[Event]:
        """Its events as they come."""
        return self._each(self._job.events())

    def cancel(self) -> Receipt | None:
        """Stop it and wait until it has stopped. Also from another thread."""
        return self._portal.call(self._job.cancel)

    @property
    def job_id(self) -> str:
        """What it is called."""
        return self._job.job_id

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self._job.text

    @property
    def started(self) -> Json | None:
        """Data of its `started` event."""
        return self._job.started

    @property
    def ending(self) -> Ending | None:
        """Its natural end, once it is there."""
        return self._job.ending

    @property
    def receipt(self) -> Receipt | None:
        """What a stop did, once there was one."""
        return self._job.receipt

    def _each(self, source: AsyncIterator[T]) -> Iterator[T]:
        """One after the other. A wait that is interrupted (Ctrl-C) does not leave the reading behind."""
        try:
            while True:
                waiting = self._portal.start_task_soon(_next, source)
                try:
                    found = waiting.result()
                except BaseException:
                    waiting.cancel()
                    raise
                if not found:
                    return
                yield found[0]
        finally:
            self._portal.call(_close, source)


async def _next(source: AsyncIterator[T]) -> list[T]:
    """The next one, if there is one; a StopAsyncIteration cannot cross threads."""
    async for one in source:
        return [one]
    return []


async def _close(source: AsyncIterator[Any]) -> None:
    """Close a generator that may still be about to be left by a cancelled wait."""
    for _ in range(100):
        try:
            await source.aclose()  # type: ignore[attr-defined]  # They are generators.
        except RuntimeError:  # It is running.
            await anyio.sleep(0.01)
        else:
            return
