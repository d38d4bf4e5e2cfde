"""A job's readers: each at its own pace over the job's one list of events."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import Event
from worker_orcd.jobs.job import Job

MOST_READERS = 32
"""Of one job."""

Numbered = tuple[int, Event]


class JobStream:
    """Lets any number of readers follow one job. A slow one holds up nobody: what it has not read yet stays in the
    job's list, which the job's own length bounds."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.readers = 0
        """Who follows it now."""
        self._waiting: set[asyncio.Future[None]] = set()

    def join(self) -> None:
        """One more reader.

        Raises:
            JobError: `QUEUE_FULL`, there are too many.
        """
        if self.readers >= MOST_READERS:
            raise JobError(
                ErrorCode.QUEUE_FULL, f"{self.readers} readers follow this job already", retry_after_sec=1
            )
        self.readers += 1

    def wake(self) -> None:
        """Something happened to the job."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def changed(self, timeout_sec: float) -> bool:
        """Wait until something happens to the job. False if nothing did for so long."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(timeout_sec):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
        return True

    async def read(self, idle_sec: float, start: int = 0) -> AsyncIterator[Sequence[Numbered]]:
        """The job's events from number `start` on, as many at a time as there are; none when it idles so long.

        Ends after the terminal event.
        """
        place = start
        while True:
            events = self.job.events
            if place < len(events):
                batch = list(enumerate(events[place:], place))
                place = len(events)
                yield batch
            elif not self.job.live:
                return
            elif not await self.changed(idle_sec):
                yield []
