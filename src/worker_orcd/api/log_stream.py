"""`GET /narration`: the worker's log events, as they happen."""

from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.types import Receive, Scope, Send

from worker_orcd import narration
from worker_orcd.api import schema
from worker_orcd.api.access import is_operator, owner_of
from worker_orcd.api.half_close import takes_comments
from worker_orcd.api.sse import KEEP_ALIVE_SEC
from worker_orcd.jobs.errors import ErrorCode, JobError

_encoder = msgspec.json.Encoder()


def router(broadcast: narration.Broadcast) -> APIRouter:
    """The route of this resource."""
    routes = APIRouter(tags=["health"])

    @routes.get(
        "/narration",
        summary="The log events that this key may read, as server-sent events: the latest 200, or those after "
        "`Last-Event-ID`, then new ones",
        response_class=Response,
        responses=schema.answer(200, "Each event's data is one object, as in the log", "text/event-stream")
        | schema.errors(401, 429),
        openapi_extra=schema.header("Last-Event-ID", "the `id:` of the last event received", None),
    )
    async def narrated(request: Request) -> Response:
        listener = broadcast.join(
            owner_of(request), request.headers.get("last-event-id"), operator=is_operator(request)
        )
        if listener is None:
            raise JobError(ErrorCode.QUEUE_FULL, "the narration has too many listeners", retry_after_sec=5)
        return _Narration(broadcast, listener)

    return routes


class _Narration(EventSourceResponse):
    def __init__(self, broadcast: narration.Broadcast, listener: narration.Listener) -> None:
        self._broadcast = broadcast
        self._listener = listener
        super().__init__(self._chunks(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        takes_comments(scope)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._broadcast.leave(self._listener)

    async def _chunks(self) -> AsyncIterator[bytes]:
        async for events in self._listener.listen(KEEP_ALIVE_SEC):
            yield b"".join(map(_frame, events)) or KEEPALIVE_COMMENT


def _frame(received: narration.MarkedEvent) -> bytes:
    return b"id: %s\ndata: %s\n\n" % (received.mark.encode(), _encoder.encode(received.event))
