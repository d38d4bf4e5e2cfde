"""Distinguishes a client that has half-closed its connection, and still reads, from a client that has left.

Both send the same FIN. Only the next byte written to the client shows the difference: if the client has closed its
socket, its kernel answers with a reset (RFC 9293, 3.10.7.4); otherwise it acknowledges the byte. So the worker writes
bytes that change nothing, at once and then periodically, and checks for a reset.
"""

import asyncio
import select
from collections.abc import Callable, MutableMapping
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PROBE_SEC = 0.025
"""Interval of probes. A client that closes its socket later is noticed by the next probe."""
FIRST_LOOK_SEC = 0.002
"""Time from a probe to the first check for a reset, which arrives at once on the same machine."""
ANSWER_BEGINS = b"HTTP/1.1 "
"""The first bytes of every response. Only these can be written while the status is unknown."""
_TAKES_COMMENTS = "takes_comments"


def takes_comments(scope: MutableMapping[str, Any]) -> None:
    """Note that the response consists of server-sent events, between which comments may be written."""
    scope.setdefault("state", {})[_TAKES_COMMENTS] = True


class HalfClose:
    """Probes the client of one connection from its FIN to the connection's end. Aborts the connection when the client
    has left."""

    def __init__(
        self, transport: asyncio.Transport, answering: Callable[[], RequestResponseCycle | None]
    ) -> None:
        """Probe at once.

        Args:
            transport: the connection's transport.
            answering: returns the request that is being answered.
        """
        self._transport = transport
        self._answering = answering
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        # With no events requested, poll reports resets (POLLERR, POLLHUP) but not a FIN.
        self._poll.register(transport.get_extra_info("socket").fileno(), 0)
        self._probe_at = self._loop.time()
        self._pause_sec = PROBE_SEC
        self._timer: asyncio.Handle = self._loop.call_soon(self._look)

    def close(self) -> None:
        """Stop probing, because the connection is closed."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        if self._poll.poll(0):
            self._transport.abort()
            return
        due = self._loop.time() >= self._probe_at
        wait_sec = FIRST_LOOK_SEC if due and self._probe() else PROBE_SEC
        self._timer = self._loop.call_later(wait_sec, self._look)

    def _probe(self) -> bool:
        cycle = self._answering()
        if cycle is None or cycle.response_complete or self._transport.get_write_buffer_size():
            return False  # Unsent data are a probe themselves.
        if not cycle.response_started:
            self._begin_answer(cycle)
        elif cycle.scope["state"].get(_TAKES_COMMENTS):
            self._transport.write(comment(chunked=bool(cycle.chunked_encoding)))
            self._probe_at = self._loop.time() + PROBE_SEC
        return True

    def _begin_answer(self, cycle: RequestResponseCycle) -> None:
        """Write the next byte of the status line. It has few, so the pauses between them grow."""
        begun: Any = cycle.transport
        if not isinstance(begun, _Begun):
            begun = cycle.transport = _Begun(self._transport, cycle)  # type: ignore[assignment]  # Has what is called.
            self._pause_sec = PROBE_SEC
        begun.write_one_more()
        self._probe_at = self._loop.time() + self._pause_sec
        self._pause_sec *= 2


class _Begun:
    """A transport for one response whose first bytes are already written. Leaves these out."""

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._written = 0
        self.is_closing = transport.is_closing
        self.close = transport.close

    def write_one_more(self) -> None:
        """Write the next byte, if its value is known."""
        self._transport.write(ANSWER_BEGINS[self._written : self._written + 1])
        self._written = min(self._written + 1, len(ANSWER_BEGINS))

    def write(self, data: bytes) -> None:
        """Write the beginning of the response; the rest goes directly to the connection."""
        self._cycle.transport = self._transport
        self._transport.write(data[self._written :])


def comment(*, chunked: bool) -> bytes:
    """An SSE comment, as written between the pieces of a streamed response."""
    if not chunked:
        return KEEPALIVE_COMMENT
    return b"%x\r\n%b\r\n" % (len(KEEPALIVE_COMMENT), KEEPALIVE_COMMENT)
