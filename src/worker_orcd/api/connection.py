"""One client's connection: uvicorn's protocol with bounds, and with refusals as error responses."""

import asyncio
import re
import resource
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from worker_orcd.api.connections import Connections
from worker_orcd.api.error_responses import SAFE_HEADERS, Refuse
from worker_orcd.api.half_close import HalfClose
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.narration.context import UNAUTHENTICATED, accept_correlation_id, correlation_id, owner

REQUEST_SEC = 10.0
"""Time to send a whole request. After it, the connection is dropped."""
STALL_SEC = 30.0
"""Time without progress in reading a response. After it, the connection is dropped."""
MAX_HEAD_BYTES = 64 * 1024
MAX_AHEAD_BYTES = 256 * 1024
"""The most bytes of pipelined requests, which a client sends before it has received the response."""
MAX_CONNECTIONS = 4096
SPARE_DESCRIPTORS = 64
RESERVE = 16
"""One in this many connections is reserved for cancels and health."""
ADMIT = "admit"
"""Key in a request's state: a function to call once the request is accepted."""
_HEAD_END = re.compile(rb"\n\r?\n")
_UPGRADE = re.compile(rb"(?<=\n)upgrade(?=:)", re.IGNORECASE)
RESERVED = "reserved"
"""Key in a request's state: whether only reserved connections are left."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Bounds the number of connections, the size of a request's head, and the time for sending a
    request and for reading the response. Refuses with error responses."""

    def __init__(
        self, *args: Any, refuse: Refuse, all_open: "Connections[BoundedProtocol]", **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._answer = refuse
        self._all_open = all_open
        self._in_head = True
        self._is_begun = False
        """Whether a request has begun and is not complete."""
        self._is_over = False
        """Whether no further request is read, because what came was none."""
        self._head_bytes = 0
        self._line_begun = b""
        """Held-back end of the head so far, which may become an `Upgrade:` line or the head's end: a line feed and the
        beginning of the next line."""
        self._ahead_bytes = 0
        self._answering: RequestResponseCycle | None = None
        self._half_close: HalfClose | None = None
        """Set once the client has closed its side of the connection before the response is complete."""
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As in uvicorn.
        """A client has connected."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # Any waiting data call `pause_writing`.
        if not self._all_open.add(self, _most_connections()):
            self._refuse(too_many_connections())
            return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._all_open.remove(self)
        for timer in (self._request_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        if self._half_close is not None:
            self._half_close.close()
        if self._answering is not None and not self._answering.response_complete:
            # Of pipelined requests, uvicorn informs only the latest one.
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client has sent data."""
        if self._is_over:
            return
        if self._in_head:
            self._head_bytes += len(data)
            data = self._without_upgrade(data)
        if data:
            super().data_received(data)
        else:
            self._unset_keepalive_if_required()
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(invalid(f"the request's head is larger than {MAX_HEAD_BYTES} bytes"))
        if not self.pipeline:
            self._ahead_bytes = 0
        elif not self.transport.is_closing():
            # uvicorn would stop reading while pipelined requests wait, and not notice that the client leaves.
            self.flow.resume_reading()
            self._ahead_bytes += len(data)
            if self._ahead_bytes > MAX_AHEAD_BYTES:
                self.transport.abort()
        if self._in_head and self._idle and not self.transport.is_closing():
            # The data were not a request yet, and they have ended uvicorn's wait for one.
            self._await_request()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn always closes.
        """The client has sent a FIN. Keep the connection if a complete request still waits for its response."""
        if not self._answers:
            return False
        # uvloop reports the FIN again whenever reading is resumed.
        if self._half_close is None:
            self._read_no_more()
            self._half_close = HalfClose(self.transport, lambda: self._answering)
        return True

    @property
    def _answers(self) -> bool:
        """Whether a complete request is being answered."""
        cycle = self._answering
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered, and no timer runs."""
        answered = self._answering is None or self._answering.response_complete
        return answered and self._request_timer is None and self.timeout_keep_alive_task is None

    def _without_upgrade(self, data: bytes) -> bytes:
        """The next piece of a head, without `Upgrade`. Upgrades are ignored (RFC 9110, 7.8), but the parser would treat
        the request's body as data of the other protocol. Java's client and `curl --http2` send `Upgrade` with every
        first request."""
        passed_on = len(self._line_begun[:1])
        data = self._line_begun + data
        end = _HEAD_END.search(data)
        line = data[data.rfind(b"\n") :] if b"\n" in data and end is None else b""
        undecided = b"\nupgrade:".startswith(line.lower()) or line == b"\n\r"
        self._line_begun = line if undecided else b""
        data = data[: len(data) - len(self._line_begun[1:])]
        head = len(data) if end is None else end.end()
        return (_UPGRADE.sub(b"x-upgrade", data[:head]) + data[head:])[passed_on:]

    def on_message_begin(self) -> None:
        """A request has begun."""
        super().on_message_begin()
        self._is_begun = True
        self.scope["state"][ADMIT] = self._admit
        if self._request_timer is None:
            self._await_request()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. White space behind its value is not part of it (RFC 9110, 5.5)."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """The request's head is complete."""
        self._in_head = False
        self._line_begun = b""
        most = _most_connections()
        reserved = self._all_open.busy >= most - most // RESERVE
        self.scope["state"][RESERVED] = reserved
        super().on_headers_complete()
        if reserved:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_head = True
        self._is_begun = False
        self._head_bytes = 0
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The response is complete. The next pipelined request, if any, is answered; one that has only begun has its
        time from now on."""
        super().on_response_complete()
        self._check_idle()
        if self._is_begun and self._request_timer is None and not self._is_over:
            self._await_request()

    def make_room(self) -> None:
        """Close this connection to make room for another one. No accepted request is being answered."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """The client does not read the response: start the timer that drops it."""
        self.flow.pause_writing()
        self._check_reading()

    def resume_writing(self) -> None:
        """It did."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self.flow.resume_writing()
        self._check_idle()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not an HTTP request."""
        self._refuse(invalid(msg.rstrip(".").lower()))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        if cycle.scope["http_version"] == "1.0":
            app = _unchunked(cycle, app)
        super()._start_asgi_task(cycle, app)

    def _admit(self) -> None:
        self._all_open.admit(self)

    def _check_idle(self) -> None:
        answered = self._answering is not None and self._answering.response_complete
        if answered and self._stall_timer is None:
            self._all_open.answered(self)

    def _await_request(self) -> None:
        self._request_timer = self.loop.call_later(REQUEST_SEC, self._too_late)

    def _too_late(self) -> None:
        """The next request is not there in time. While another one is answered, it may still come."""
        self._request_timer = None
        if not self._answers:
            self.transport.abort()

    def _read_no_more(self) -> None:
        """Read no further request: after the answers to those that are complete, the connection is closed."""
        self._is_over = True
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        if self._is_begun and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()  # Its body would never be complete.
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is not None:
            last.keep_alive = False

    def _check_reading(self, waiting_before: int | None = None) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting_before is not None and waiting >= waiting_before:
            self.transport.abort()
            return
        self._stall_timer = self.loop.call_later(STALL_SEC, self._check_reading, waiting)

    def _refuse(self, error: JobError) -> None:
        """Refuse what the client has sent, and close the connection. Behind a request that is being answered, it is
        ignored instead, and the connection is closed after the answer."""
        if self._answers:
            self._read_no_more()
            return
        headers = dict(self.headers) if self._is_begun else {}
        offered = (
            headers.get(name, b"").decode("latin-1") for name in (b"x-correlation-id", b"x-request-id")
        )
        asked = accept_correlation_id(*offered)
        token, owned = correlation_id.set(asked), owner.set(UNAUTHENTICATED)
        try:
            answer = self._answer(error, "")
        finally:
            correlation_id.reset(token)
            owner.reset(owned)
        status = HTTPStatus(answer.status_code)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}".encode(),
            *(name + b": " + value for name, value in answer.raw_headers),
            *(f"{name}: {value}".encode() for name, value in SAFE_HEADERS.items()),
            f"x-correlation-id: {asked}".encode(),
            b"connection: close",
        ]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()


def _unchunked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """The app for an HTTP/1.0 request. HTTP/1.0 has no chunked coding, so a response of unknown length ends with the
    connection (RFC 9112, 6.3)."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        until_close = False

        async def send_plain(message: Any) -> None:
            nonlocal until_close
            if message["type"] == "http.response.start":
                until_close = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if until_close:
                    cycle.chunked_encoding = False  # uvicorn then does not change it.
            elif until_close:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return served


def too_many_connections() -> JobError:
    """The refusal of a further connection."""
    return JobError(ErrorCode.QUEUE_FULL, "the worker has too many connections", retry_after_sec=1)


def _most_connections() -> int:
    """The bound of connections: the number of file descriptors, less a reserve."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS)
