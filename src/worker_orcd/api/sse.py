"""A job's events as server-sent events."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

import msgspec
from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.types import Receive, Scope, Send

from worker_orcd.api.half_close import takes_comments
from worker_orcd.api.middleware import SEND_BODY
from worker_orcd.jobs.errors import JobError, invalid
from worker_orcd.jobs.events import Error
from worker_orcd.jobs.position import Position
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream, KeepAlive, Numbered

KEEP_ALIVE_SEC = 15.0

_encoder = msgspec.json.Encoder()


def encode(events: Sequence[Numbered], incarnation: str) -> bytes:
    """Events in SSE framing, each with its position as `id:`. JSON escapes control characters in text."""
    ids = str(Position(incarnation, 0)).removesuffix("0").encode()
    return b"".join(
        [
            b"event: %b\ndata: %b\nid: %b%d\n\n"
            % (event.name.encode(), _encoder.encode(event.data()), ids, number)
            for number, event in events
        ]
    )


class Readers:
    """One reader of each of these jobs, while it is open. If it is the client whose request made the jobs, its leaving
    stops those that nobody else reads. If one of them has failed or was stopped, so has the request: then its other
    jobs are stopped, whoever reads them."""

    def __init__(
        self, worker: WorkerInterface, streams: Sequence[JobStream], *, follows: bool = False
    ) -> None:
        self._worker = worker
        self._streams = streams
        self._follows = follows
        self._joined: list[JobStream] = []

    def __enter__(self) -> Self:
        """Join the jobs' readers.

        Raises:
            JobError: one of the jobs has too many readers.
        """
        try:
            for stream in self._streams:
                stream.join()
                self._joined.append(stream)
        except JobError:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Leave them."""
        self.close()

    def close(self) -> None:
        """Leave them."""
        joined, self._joined = self._joined, []
        is_over = any(isinstance(stream.job.terminal, Error) for stream in joined)
        for stream in joined:
            if self._follows:
                self._worker.follower_left(stream)
                continue
            self._worker.reader_left(stream)
            if is_over and stream.job.stop is None:
                self._worker.stop(stream.job, StopReason.DISCONNECT)


Chunks = Callable[[KeepAlive], AsyncIterator[bytes]]


class ReaderResponse(EventSourceResponse):
    """One reader's response. However it ends, even before its first byte, the reader leaves its jobs: this stops a job
    whose client has disconnected. A follower's leaving stops nothing.

    Bytes are sent at least every `KEEP_ALIVE_SEC`, whatever the jobs do, because proxies close idle connections.
    """

    def __init__(
        self, worker: WorkerInterface, streams: Sequence[JobStream], chunks: Chunks, *, follows: bool = False
    ) -> None:
        """Join the jobs' readers.

        Args:
            worker: the worker of the jobs.
            streams: the jobs' streams.
            chunks: makes the chunks to send: whole events, or nothing when there is no event to send.
            follows: whether the jobs are those of other requests.
        """
        self._readers = Readers(worker, streams, follows=follows).__enter__()
        self._keep_alive = KeepAlive(KEEP_ALIVE_SEC)
        self._send_body: Send | None = None
        super().__init__(
            chunks(self._keep_alive),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **named(streams)},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the last terminal event is sent or the reader leaves."""
        takes_comments(scope)
        self._send_body = scope["state"].get(SEND_BODY)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._readers.close()

    async def stream_response(self, send: Send) -> None:
        """Send the head, the chunks, comments when they are due, and the end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        send = self._send_body or send
        async for chunk in self.body_iterator:
            if chunk or self._keep_alive.left_sec <= 0:
                body = chunk or KEEPALIVE_COMMENT
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._keep_alive.sent()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class JobStreamResponse(ReaderResponse):
    """One reader of one job's events, from number `start` on."""

    def __init__(
        self, worker: WorkerInterface, stream: JobStream, start: int = 0, *, follows: bool = False
    ) -> None:
        def chunks(keep_alive: KeepAlive) -> AsyncIterator[bytes]:
            return self._chunks(stream.read(keep_alive, start), stream.job.incarnation)

        super().__init__(worker, [stream], chunks, follows=follows)

    @staticmethod
    async def _chunks(batches: AsyncIterator[Sequence[Numbered]], incarnation: str) -> AsyncIterator[bytes]:
        async for events in batches:
            yield encode(events, incarnation)


def named(streams: Sequence[JobStream]) -> dict[str, str]:
    """The header with the job's id. Of several jobs it names the first one, whose stop ends the request."""
    return {"X-Job-Id": streams[0].job.job_id}


def last_event_id(request: Request) -> Position | None:
    """The position of the last event that a reader has received, from its `Last-Event-ID`; None without this header.

    Raises:
        JobError: `INVALID_REQUEST`: the header is not the id of an event.
    """
    given = request.headers.get("last-event-id", "")
    if not given:
        return None
    try:
        return Position.parse(given)
    except ValueError:
        raise invalid("Last-Event-ID must be the id of an event", "Last-Event-ID") from None


def whole_number(given: str | None, name: str) -> int | None:
    """The number of an event, from the query; None if it is left out.

    Raises:
        JobError: `INVALID_REQUEST`: the value is not a whole number.
    """
    if given is None or given == "":
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        raise invalid(f"{name} must be the number of an event: 0, 1, 2 …", name)
    return int(given)
