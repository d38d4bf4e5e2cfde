"""One job of a client, and its stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Self

import anyio

from worker_orcd.client import decoding
from worker_orcd.client.connection import (
    CANCEL_SEC,
    LONGEST_PAUSE_SEC,
    Connection,
    Message,
    NothingMore,
    in_path,
    pause_sec,
)
from worker_orcd.client.errors import JobCancelled, JobFailed, WorkerError, WorkerRefused, WorkerUnreachable
from worker_orcd.client.model import Ending, Event, Json, Progress, Receipt, Token

RESUME_SEC = 30.0
"""Seconds after a break during which the client tries to resume a stream."""


OnProgress = Callable[[Progress], object]
"""Called for each `progress` event of a job, as it arrives."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How a job is started: path, body and headers of the request, and the decoder of the stream."""

    path: str
    body: Json
    headers: dict[str, str] = field(default_factory=dict)
    decode: Callable[[Message], Iterable[Event]] = decoding.events


class Job:
    """One job and its stream.

    Attributes:
        job_id: the job's id.
        text: the text so far.
        started: data of the `started` event: model, seed.
        progress: the progress of the prompt, from the latest `progress` event.
        ending: the natural end, once it is reached.
        receipt: the receipt, once the job was stopped.
    """

    def __init__(
        self,
        connection: Connection,
        job_id: str,
        opening: Opening | None,
        *,
        resume: bool,
        after: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.job_id = job_id
        self.text = ""
        self.started: Json | None = None
        self.progress: Progress | None = None
        self.ending: Ending | None = None
        self.receipt: Receipt | None = None
        self._connection = connection
        self._opening = opening
        self._resume = resume
        self._on_progress = on_progress
        self._incarnation: str | None = None
        self._next_number = 0
        if after is not None:
            self._incarnation, seen = decoding.position(after)
            self._next_number = seen + 1
        self._over = False
        self._open = AsyncExitStack()
        self._source: AsyncIterator[Event] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._back = _Back()

    async def __aenter__(self) -> Self:
        """Begin the job.

        Raises:
            WorkerRefused: the job is refused.
        """
        try:
            await self._begin()
        except BaseException as error:
            # If this was interrupted, it is unknown whether the job was accepted.
            await self._leave(cancel=self._opening is not None and not _certainly_not_taken(error))
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave the block. A job of this client that has not ended is cancelled."""
        await self._leave(cancel=self._opening is not None and not self._over)

    async def __aiter__(self) -> AsyncIterator[Token]:
        """The job's tokens, as they arrive.

        Raises:
            JobCancelled: the job was stopped, by any client.
            JobFailed: the job ended with an error.
        """
        async for event in self.events():
            match event.name:
                case "token":
                    yield Token(event.data["i"], event.data["t"], event.data.get("logprobs"))
                case "error":
                    raise await self._failure(event.data)

    async def events(self) -> AsyncIterator[Event]:
        """The job's events, as they arrive, including the terminal one."""
        while not self._over:
            if self._source is None:
                raise RuntimeError("a job begins when it is entered: async with client.execute(...) as job")
            try:
                async for event in self._source:
                    self._take(event)
                    yield event
                if not self._over:
                    raise WorkerUnreachable(  # noqa: TRY301  # It is one more way in which a stream breaks.
                        "the stream was cut off before the job's end",
                        correlation_id=self._connection.correlation_id,
                    )
            except WorkerUnreachable as broken:
                if not self._resume:
                    raise
                await self._pick_up(broken)

    async def cancel(self) -> Receipt | None:
        """Cancel the job and wait until it has stopped; harmless at any time.

        Returns:
            The receipt; None if the job had ended by itself.
        """
        receipts = await self._connection.cancel({"job_id": self.job_id}, CANCEL_SEC)
        self.receipt = receipts[0] if receipts else self.receipt
        return self.receipt

    # Internals.

    async def _begin(self) -> None:
        if self._opening is None:
            try:
                self._source = await self._events_after_the_last()
            except NothingMore:
                self._over = True
            return
        how = self._opening
        try:
            self._source = await self._connection.begin(
                self._open, how.path, how.decode, json=how.body, headers=how.headers
            )
        except WorkerUnreachable as error:
            # The job may have been accepted while only the response was lost. Then its stream can be resumed.
            if not (self._resume and error.sent):
                raise
            await self._pick_up(error)

    async def _events_after_the_last(self) -> AsyncIterator[Event]:
        headers = {}
        if self._incarnation is not None:
            headers["Last-Event-ID"] = f"{self._incarnation}.{self._next_number - 1}"
        path = f"/jobs/{in_path(self.job_id)}/events"
        return await self._connection.open(self._open, "GET", path, decoding.events, headers=headers)

    async def _pick_up(self, broken: WorkerError) -> None:
        self._back.lost()
        while True:
            await self._open.aclose()
            if not await self._back.wait():
                raise broken
            try:
                self._source = await self._events_after_the_last()
            except WorkerError as error:
                if not error.retriable:
                    raise broken from error
            else:
                self._back.found()
                return

    def _take(self, event: Event) -> None:
        if event.number != self._next_number or (self._incarnation or event.incarnation) != event.incarnation:
            expected = f"{self._incarnation or event.incarnation}.{self._next_number}"
            raise WorkerError("INTERNAL", f"event {event.id or event.number} arrived instead of {expected}")
        self._incarnation, self._next_number = event.incarnation, event.number + 1
        self._back.received()
        match event.name:
            case "started":
                self.started = event.data
            case "progress":
                known = ("prompt_tokens", "processed", "cached")
                self.progress = Progress(**{name: event.data[name] for name in known})
                if self._on_progress is not None:
                    self._on_progress(self.progress)
            case "token":
                self.text += event.data["t"]
            case "end":
                known = ("tokens_out", "decode_time_ms", "stop_reason")
                self.ending = Ending(**{name: event.data[name] for name in known})
        self._over = event.terminal

    async def _failure(self, data: Json) -> JobFailed:
        code, message, correlation_id = data["code"], data["message"], self._connection.correlation_id
        if code != "CANCELLED":
            return JobFailed(code, message, correlation_id=correlation_id, retriable=data["retriable"])
        with suppress(WorkerError):  # The stop is known; only the receipt may be lost.
            if self.receipt is None and (record := await self._connection.record(self.job_id)):
                # The id may have been used again meanwhile.
                ours = self._incarnation in (None, record["incarnation"])
                self.receipt = Receipt.of_record(record) if ours else None
        return JobCancelled(
            message,
            # OpenAI's chunks do not contain the reason.
            reason=data.get("reason") or (self.receipt.reason if self.receipt else "unknown"),
            phase=data.get("phase") or (self.receipt.phase if self.receipt else "unknown"),
            receipt=self.receipt,
            correlation_id=correlation_id,
        )

    async def _leave(self, *, cancel: bool) -> None:
        """Leave the job. Takes a bounded time, and cannot be interrupted by cancellations of the task.

        It runs in a separate task, because `task.cancel()` would pass any shield.
        """
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._cancel_quietly(cancel=cancel))
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not self._leaving.done():
                try:
                    await asyncio.wait([self._leaving])
                except asyncio.CancelledError as error:
                    cancelled = error
        await self._open.aclose()  # Closes what an interrupted beginning had opened meanwhile.
        if cancelled is not None:
            raise cancelled
        self._leaving.result()

    async def _cancel_quietly(self, *, cancel: bool) -> None:
        try:
            with anyio.move_on_after(CANCEL_SEC):
                if cancel:
                    await self.cancel()
        except WorkerError:
            pass  # The worker cannot be reached. It stops or continues a job without a reader by `on_disconnect`.
        finally:
            await self._open.aclose()


def _certainly_not_taken(error: BaseException) -> bool:
    """Whether a request with this failure certainly started no job. Then a cancel would be remembered, and would stop
    the next job with this id."""
    return isinstance(error, WorkerRefused) or (isinstance(error, WorkerUnreachable) and not error.sent)


class _Back:
    """The state of resuming a broken stream: how long it has taken so far, and when to try again."""

    def __init__(self) -> None:
        self._lost_at: float | None = None
        self._found_at = 0.0
        self._attempts = 0

    def received(self) -> None:
        """An event arrived, so the stream works."""
        self._lost_at = None

    def found(self) -> None:
        """The stream is open again, but has not delivered an event yet."""
        self._found_at = time.monotonic()

    def lost(self) -> None:
        """The stream broke. If it had not delivered an event since the last break, this is the same loss."""
        held_sec = time.monotonic() - self._found_at
        if self._lost_at is None or held_sec > LONGEST_PAUSE_SEC:
            self._lost_at, self._attempts = time.monotonic(), 0

    async def wait(self) -> bool:
        """Wait until the next attempt; the first one is made at once. Returns False if the time is over."""
        if self._lost_at is None or time.monotonic() - self._lost_at > RESUME_SEC:
            return False
        if self._attempts:
            await anyio.sleep(pause_sec(self._attempts - 1))
        self._attempts += 1
        return True
