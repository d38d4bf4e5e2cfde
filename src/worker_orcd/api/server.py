"""The HTTP server: uvicorn, with its habits changed that would get in the way of a drain, of bounds, and of our error
shape."""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker_orcd.api.answers import Refuse
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.narration.context import correlation_id, new_correlation_id

REQUEST_SEC = 10.0
"""A client that has not sent its whole request after so long is dropped."""
STALL_SEC = 30.0
"""One that has taken nothing of what waits for it for so long is dropped, too."""
SEND_BUFFER_BYTES = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 4096
_SPARE_DESCRIPTORS = 64
FLUSH_SEC = 1
"""How long streams may take to send what they have when the server goes down."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with a bound to everything: how many there are, how large a request's head is, how long its
    client may take to send it, and how long to take its answer. Refuses in the one shape."""

    def __init__(self, *args: Any, refuse: Refuse, **more: Any) -> None:
        super().__init__(*args, **more)
        self._answer = refuse
        self._in_head = True
        self._head_bytes = 0
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if len(self.connections) > _most_connections():
            self._refuse(JobError(ErrorCode.QUEUE_FULL, "there are too many connections", retry_after_sec=1))
            return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        for timer in (self._request_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """It sends something."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(invalid(f"the request's head is larger than {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._request_timer is None:
            self._await_request()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._in_head = True
        self._head_bytes = 0
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not take its answer: see whether it ever does."""
        self.flow.pause_writing()
        self._see_whether_it_reads()

    def resume_writing(self) -> None:
        """It did."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self.flow.resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP request."""
        self._refuse(invalid(msg.rstrip(".").lower()))

    def _await_request(self) -> None:
        self._request_timer = self.loop.call_later(REQUEST_SEC, self.transport.abort)

    def _see_whether_it_reads(self, waiting_before: int | None = None) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting_before is not None and waiting >= waiting_before:
            self.transport.abort()
            return
        self._stall_timer = self.loop.call_later(STALL_SEC, self._see_whether_it_reads, waiting)

    def _refuse(self, error: JobError) -> None:
        asked = new_correlation_id()
        token = correlation_id.set(asked)
        try:
            answer = self._answer(error, "")
        finally:
            correlation_id.reset(token)
        status = HTTPStatus(answer.status_code)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}".encode(),
            *(name + b": " + value for name, value in answer.raw_headers),
            f"x-correlation-id: {asked}".encode(),
            b"connection: close",
        ]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()


def _most_connections() -> int:
    """As many as there are descriptors for, with some to spare."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS)


class Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would close its listeners first, and `/cancel` with them, while jobs drain."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load what the first stream would otherwise stop the whole front for (about 100 ms), then listen."""
        async with anyio.create_task_group():
            pass
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(app: FastAPI) -> Server:
    """A server for the app; narration takes the place of uvicorn's log."""
    log = logging.getLogger("uvicorn")
    log.propagate = False  # Its lines are no narration, and say nothing that is not narrated.
    log.addHandler(logging.NullHandler())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_DESCRIPTORS
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return Server(
        uvicorn.Config(
            app,
            http=partial(BoundedProtocol, refuse=app.state.refuse),  # type: ignore[arg-type]  # Only called.
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=FLUSH_SEC,
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        OSError: it is in use, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections take it over: a client that does not read is found out before the kernel has swallowed megabytes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
