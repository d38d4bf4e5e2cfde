"""The HTTP server: uvicorn, adapted to the worker's drain, bounds and error responses."""

import contextlib
import logging
import resource
import socket
from collections.abc import Iterator
from functools import partial

import anyio
import uvicorn
from fastapi import FastAPI

from worker_orcd.api import connection
from worker_orcd.api.connection import MAX_CONNECTIONS, SPARE_DESCRIPTORS, BoundedProtocol
from worker_orcd.api.connections import Connections

SEND_BUFFER_BYTES = 64 * 1024
FLUSH_SEC = 1.0
"""How long streams may take to send pending data when the server shuts down."""
_LEAVING_SEC = 0.35
"""Additional time for uvicorn's own timing and the end of the process."""


class Server(uvicorn.Server):
    """Does not handle signals: uvicorn would close its listeners first, so `/cancel` would fail while jobs drain."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load modules for which the first stream would otherwise block the front (about 100 ms), then listen."""
        async with anyio.create_task_group():
            pass
        await super().startup(sockets)

    def exit_within(self, sec: float) -> None:
        """Shut down. Streams that have not sent their pending data within this time are cut off."""
        flush_sec = max(0.0, min(FLUSH_SEC, sec - _LEAVING_SEC))
        self.config.timeout_graceful_shutdown = flush_sec  # type: ignore[assignment]  # asyncio takes it as it is.
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(app: FastAPI, keep_alive_sec: float) -> Server:
    """A server for the app. Log events replace uvicorn's log.

    Args:
        app: the app to serve.
        keep_alive_sec: how long an idle connection is kept.
    """
    log = logging.getLogger("uvicorn")
    log.propagate = False  # The worker logs the same facts as events.
    log.addHandler(logging.NullHandler())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_DESCRIPTORS
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    all_open = Connections(BoundedProtocol.make_room)
    return Server(
        uvicorn.Config(
            app,
            http=partial(BoundedProtocol, refuse=app.state.refuse, all_open=all_open),  # type: ignore[arg-type]  # Only called.
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=keep_alive_sec,  # type: ignore[arg-type]  # asyncio takes it as it is.
            timeout_graceful_shutdown=FLUSH_SEC,  # type: ignore[arg-type]  # asyncio takes it as it is.
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """Bind the port, before anything is loaded.

    Raises:
        OSError: the port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit both options. A client that does not read is then noticed before the kernel has buffered
        # megabytes, and also if all its data fit into the buffer.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        patience_ms = round(connection.STALL_SEC * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
