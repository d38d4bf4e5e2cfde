"""Middleware that records the job ids of refused requests. Pure ASGI.

A cancel that follows a refused request is meant for that request. If the worker remembered this cancel, it would stop
the corrected request. A refusal may have any cause (a bad field, a body that is too large, a full queue, a drain, a
wrong path or method), so it is recognized by the response's status, before the response is sent.
"""

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker_orcd.api.access import owner_of_scope
from worker_orcd.worker.interface import WorkerInterface

READ_ON_BYTES = 16 << 20
"""A body that was refused unread is searched for the job's id, if it is at most this long …"""
READ_ON_SEC = 1.0
"""… and arrives within this time."""
_MAX_IDS = 8
_OVERLAP = 512
_NAMED = re.compile(rb'(?<!\\)"job_id"\s*:\s*"([A-Za-z0-9._:\-]{1,256})"')
"""A member of a JSON object. Also works on bodies that are not complete JSON; quotes inside strings are escaped."""
_BY_HEADER = ("/v1/", "/infill", "/completion")
"""Paths of requests that name their job in a header."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_NOT_REFUSED = frozenset({401, 409, 504})
"""Statuses that are not such refusals: no valid key; the id is live; an accepted job timed out."""


class RefusalMiddleware:
    """Reports the job ids of refused requests to the worker."""

    def __init__(self, app: ASGIApp, worker: WorkerInterface) -> None:
        self.app = app
        self._worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in _SAFE or _cancels(scope["path"]):
            await self.app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope))

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_refusal(message["status"]):
                for job_id in await _ids_of(scope, body):
                    self._worker.refused(job_id, owner_of_scope(scope))
            await send(message)

        await self.app(scope, body.receive, send_watched)


class _Body:
    """A request's body: keeps what was read, and can search the rest."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        declared = headers.get("content-length", "0")
        self._too_long = declared.isdigit() and int(declared) > READ_ON_BYTES
        self._chunks: list[bytes] = []
        self._over = False

    async def receive(self) -> Message:
        """The next message, for the app. Keeping the bytes costs no memory: the app holds them, too, or has refused
        them."""
        message = await self._receive()
        self._chunks.append(message.get("body", b""))
        self._over = self._over or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def ids(self) -> list[str]:
        """The job ids in the body. Reads on until there is one, within the limits above."""
        tail = b"".join(self._chunks)
        found = _NAMED.findall(tail)
        if found or self._over or self._too_long:
            return [job_id.decode() for job_id in dict.fromkeys(found[:_MAX_IDS])]
        self._chunks = []
        length = len(tail)
        try:
            async with asyncio.timeout(READ_ON_SEC):
                while not found and length <= READ_ON_BYTES:
                    message = await self.receive()
                    chunk = self._chunks.pop()
                    length += len(chunk)
                    tail = tail[-_OVERLAP:] + chunk
                    found = _NAMED.findall(tail)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            pass
        return [job_id.decode() for job_id in dict.fromkeys(found[:_MAX_IDS])]


async def _ids_of(scope: Scope, body: _Body) -> list[str]:
    """A request's job ids. On the OpenAI-compatible API the id is in a header."""
    if not scope["path"].startswith(_BY_HEADER):
        return await body.ids()
    named = Headers(scope=scope).get("x-job-id")
    return [] if named is None else [named]


def _cancels(path: str) -> bool:
    """Whether a request to this path is, or may be, itself a cancel."""
    return path.rstrip("/").endswith(("/cancel", "/mcp"))


def _is_refusal(status: int) -> bool:
    return status >= 400 and status not in _NOT_REFUSED
