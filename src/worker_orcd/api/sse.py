"""A job's events as server-sent events."""

from collections.abc import AsyncIterator, Sequence

import msgspec
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

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


class JobStreamResponse(EventSourceResponse):
    """One reader of one job. However it ends, also before its first byte, the reader is counted out: that is how a
    job whose client went away is stopped."""

    def __init__(self, worker: Worker, stream: JobStream, start: int = 0) -> None:
        self._worker = worker
        self._stream = stream
        stream.join()
        super().__init__(
            self._chunks(start),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Job-Id": stream.job.job_id},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the terminal event is sent or the reader is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._worker.reader_left(self._stream)

    async def _chunks(self, start: int) -> AsyncIterator[bytes]:
        async for events in self._stream.read(KEEP_ALIVE_SEC, start):
            yield encode(events) if events else KEEPALIVE_COMMENT
