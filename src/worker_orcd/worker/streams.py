"""Readers of jobs. Each reads a job's list of events at its own speed."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Self
from weakref import WeakValueDictionary

from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import Event
from worker_orcd.jobs.job import Job
from worker_orcd.worker.observer import Observer

MAX_READERS = 32
"""The most readers of one job."""

Numbered = tuple[int, Event]


class KeepAlive:
    """When a stream must send bytes: `idle_sec` after its last byte, whatever happens to its jobs meanwhile."""

    def __init__(self, idle_sec: float) -> None:
        self._idle_sec = idle_sec
        self.sent()

    def sent(self) -> None:
        """Bytes were sent."""
        self._due_at = time.monotonic() + self._idle_sec

    @property
    def left_sec(self) -> float:
        """Seconds until bytes must be sent; 0 or less if they are due."""
        return self._due_at - time.monotonic()


class JobStream:
    """The stream of one job, for several readers. A slow reader does not delay others: its unread events stay in the
    job's list, which `max_tokens` bounds."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.readers = 0
        """Number of current readers."""
        self.client_left = False
        """Whether the connection of the job's request is closed."""
        self.waiting: set[Changes] = set()
        """The waits of the readers."""

    def join(self) -> None:
        """Add a reader.

        Raises:
            JobError: `QUEUE_FULL`: the job has too many readers.
        """
        if self.readers >= MAX_READERS:
            raise JobError(
                ErrorCode.QUEUE_FULL, f"the job already has {self.readers} readers", retry_after_sec=1
            )
        self.readers += 1

    def leave(self) -> None:
        """Remove a reader."""
        self.readers -= 1

    def wake(self) -> None:
        """Wake all waiting readers."""
        for reader in self.waiting:
            reader.wake()

    async def changed(self, timeout_sec: float) -> bool:
        """Wait for a change of the job. Returns False after `timeout_sec` without a change."""
        return await any_changed([self], timeout_sec)

    async def ended(self, until: float) -> bool:
        """Wait for the job's end. Returns False if it is still live at `until` (monotonic seconds)."""
        while self.job.live:
            left = until - time.monotonic()
            if left <= 0:
                return False
            await self.changed(left)
        return True

    def read(self, keep_alive: KeepAlive, start: int = 0) -> AsyncIterator[Sequence[Numbered]]:
        """The job's events from number `start` on, in batches of all new ones; an empty batch when the reader must send
        bytes to keep its connection alive.

        Ends after the terminal event. A reader that comes while the job is live cannot have received that event, so it
        gets it even if `start` is higher (G2).
        """
        return self._read(keep_alive, start, waits=self.job.live)

    async def _read(
        self, keep_alive: KeepAlive, start: int, *, waits: bool
    ) -> AsyncIterator[Sequence[Numbered]]:
        async with aclosing(read_together([self], keep_alive, start)) as batches:
            async for batch in batches:
                yield [(number, event) for _, number, event in batch]
        last = len(self.job.events) - 1
        if waits and start > last:
            yield [(last, self.job.events[last])]


class JobStreams(Observer):
    """The streams of all jobs. Wakes a job's readers when the job has a new event."""

    def __init__(self) -> None:
        self._live: dict[int, JobStream] = {}
        self._followed: WeakValueDictionary[int, JobStream] = WeakValueDictionary()
        """Streams in use, including those of ended jobs, so that `MAX_READERS` counts all readers of a job."""
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Number of live jobs."""
        return len(self._live)

    def of(self, job: Job) -> JobStream:
        """This job's stream, live or ended."""
        stream = self._followed.get(job.run)
        if stream is None:
            stream = self._followed[job.run] = JobStream(job)
        return stream

    async def all_ended(self, timeout_sec: float) -> bool:
        """Wait until no job is live. Returns False after `timeout_sec`."""
        try:
            async with asyncio.timeout(timeout_sec):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def accepted(self, job: Job, headers: Mapping[str, str]) -> None:
        """Open the job's stream."""
        self._live[job.run] = self.of(job)
        self._idle.clear()

    def measured(self, job: Job) -> None:
        """Wake readers that wait for the length of the prompt."""
        self.of(job).wake()

    def started(self, job: Job) -> None:
        """Wake the job's readers."""
        self.of(job).wake()

    def progress(self, job: Job) -> None:
        """Wake the job's readers."""
        self.of(job).wake()

    def token(self, job: Job, previous_at: float | None, *, generated: bool) -> None:
        """Wake the job's readers."""
        self.of(job).wake()

    def ended(self, job: Job) -> None:
        """Wake the job's readers for the last time."""
        self.of(job).wake()
        self._live.pop(job.run, None)
        if not self._live:
            self._idle.set()


class Changes:
    """Lets one reader wait repeatedly for changes of some jobs.

    All waits share one timer: a new timer for each wait would cost as much as all other work of the front for a token.
    """

    def __init__(self, streams: Sequence[JobStream]) -> None:
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] | None = None
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def __enter__(self) -> Self:
        for stream in self._streams:
            stream.waiting.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    async def next(self, timeout_sec: float) -> bool:
        """Wait for the next change. Returns False after the timeout without a change."""
        self._due_at = self._loop.time() + timeout_sec
        if self._timer is None or self._timer_at > self._due_at:
            self._set_timer()
        self._future = self._loop.create_future()
        try:
            return await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        """Wake the reader, because one of the jobs has changed. Does nothing if the reader does not wait."""
        self._finish(changed=True)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._due_at
        self._timer = self._loop.call_at(self._due_at, self._timer_due)

    def _timer_due(self) -> None:
        """End the current wait, unless the timer was set for an earlier wait; then set it again."""
        self._timer = None
        if self._future is None:
            return
        if self._due_at > self._timer_at:
            self._set_timer()
        else:
            self._finish(changed=False)

    def _finish(self, *, changed: bool) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(changed)


async def any_changed(streams: Sequence[JobStream], timeout_sec: float) -> bool:
    """Wait for a change of one of these jobs. Returns False after the timeout without a change."""
    with Changes(streams) as changes:
        return await changes.next(timeout_sec)


async def read_together(
    streams: Sequence[JobStream], keep_alive: KeepAlive, start: int = 0
) -> AsyncGenerator[Sequence[tuple[int, int, Event]], None]:
    """The events of several jobs from number `start` on, in batches of all new ones: index of the job, number, event.
    An empty batch when the reader must send bytes.

    A batch may result in no bytes at all, so the reader reports when it has sent some (`KeepAlive.sent`). Ends after
    the last terminal event.
    """
    places = [start] * len(streams)
    with Changes(streams) as changes:
        while True:
            live = any(stream.job.live for stream in streams)
            batch = [
                (index, number, event)
                for index, (stream, place) in enumerate(zip(streams, places, strict=True))
                for number, event in enumerate(stream.job.events[place:], place)
            ]
            if batch:
                places = [max(start, len(stream.job.events)) for stream in streams]
                yield batch
            elif not live:
                return
            elif await changes.next(keep_alive.left_sec):
                continue
            if keep_alive.left_sec <= 0:
                yield []
