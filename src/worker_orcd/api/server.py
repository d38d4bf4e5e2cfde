"""The HTTP server: uvicorn, with its two habits changed that would get in the way of a drain and of our error shape."""

import contextlib
import socket
from collections.abc import Iterator

import anyio
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker_orcd.api.answers import error_body
from worker_orcd.jobs.errors import invalid
from worker_orcd.narration.context import new_correlation_id

FLUSH_SEC = 1
"""How long streams may take to send what they have when the server goes down."""


class OneShapeProtocol(HttpToolsProtocol):
    """Answers what the parser refuses in the one shape, too."""

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP request."""
        body = error_body(invalid(msg.rstrip(".").lower()))
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-correlation-id: {new_correlation_id()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


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
    return Server(
        uvicorn.Config(
            app,
            http=OneShapeProtocol,
            loop="uvloop",
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
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
