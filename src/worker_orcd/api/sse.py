"""A job's events as server-sent events."""

from collections.abc import AsyncIterator, Sequence

import msgspec
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from worker_orcd.jobs.errors import JobError
from worker_orcd.worker.streams import JobStream, Numbered
from worker_orcd.worker.worker import Worker

KEEP_ALIVE_SEC = 15.0

_encoder = msgspec.json.Encoder()


def encode(events: Sequence[Numbered]) -> bytes:
    """Events in SSE framing, each with its number as `id:`. Control characters in text are escaped by JSON."""
    return b"".join(
        format_sse_event(data_str=_encoder.encode(event.data()).decode(), event=event.name, id=str(number))
        for number, event in events
    )


class ReaderResponse(EventSourceResponse):
    """One reader of one job, or of several. However it ends, also before its first byte, the reader is counted out:
    that is how a job whose client went away is stopped."""

    def __init__(self, worker: Worker, streams: Sequence[JobStream], chunks: AsyncIterator[bytes]) -> None:
        self._worker = worker
        self._streams: list[JobStream] = []
        try:
            for stream in streams:
                stream.join()
                self._streams.append(stream)
        except JobError:
            self._leave()
            raise
        super().__init__(
            chunks, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **named(streams)}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the last terminal event is sent or the reader is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()

    def _leave(self) -> None:
        for stream in self._streams:
            self._worker.reader_left(stream)


class JobStreamResponse(ReaderResponse):
    """One reader of one job's own events, from number `start` on."""

    def __init__(self, worker: Worker, stream: JobStream, start: int = 0) -> None:
        super().__init__(worker, [stream], self._chunks(stream, start))

    @staticmethod
    async def _chunks(stream: JobStream, start: int) -> AsyncIterator[bytes]:
        async for events in stream.read(KEEP_ALIVE_SEC, start):
            yield encode(events) if events else KEEPALIVE_COMMENT


def named(streams: Sequence[JobStream]) -> dict[str, str]:
    """The header that tells a client its jobs' ids."""
    return {"X-Job-Id": ", ".join(stream.job.job_id for stream in streams)}
