"""Middleware that notes the job ids of refused requests. Pure ASGI.

A cancel that follows a refused request is for that request (contract, section 3): remembered, it would stop the
corrected one. A refusal may come from anywhere (a bad field, a body that is too large, a full queue, a drain), so it is
recognized by the answer's status, before the answer is sent.
"""

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker_orcd.api.access import owner_of_scope
from worker_orcd.worker.interface import WorkerInterface

READ_ON_BYTES = 16 << 20
"""A body that was refused before it was read is searched for the job's id, if it is not longer than this …"""
READ_ON_SEC = 1.0
"""… and does not take longer to come."""
_MAX_IDS = 8
_OVERLAP = 512
_NAMED = re.compile(rb'(?<!\\)"job_id"\s*:\s*"([A-Za-z0-9._:\-]{1,256})"')
"""A member of a JSON object; inside a string, quotes are escaped. Works on bodies that are no whole JSON, too."""
_JOB_PATHS = frozenset({"/execute", "/infill", "/completion", "/completions"})
_NOT_REFUSED = frozenset({401, 409, 504})
"""Nobody's request; one whose id is live; one whose job was accepted and timed out."""


class RefusalMiddleware:
    """Tells the worker which job ids were refused."""

    def __init__(self, app: ASGIApp, worker: WorkerInterface) -> None:
        self.app = app
        self._worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not _makes_jobs(scope["path"]):
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
    """A request's body: what was read of it, and a search through the rest."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        declared = headers.get("content-length", "0")
        self._too_long = declared.isdigit() and int(declared) > READ_ON_BYTES
        self._chunks: list[bytes] = []
        self._over = False

    async def receive(self) -> Message:
        """The next message, for the app. The app holds the same bytes, or has refused them."""
        message = await self._receive()
        self._chunks.append(message.get("body", b""))
        self._over = self._over or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def ids(self) -> list[str]:
        """The job ids in it. Reads on until there is one, as far as that is reasonable."""
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
    """A request's job ids: on the OpenAI-compatible API they stand in a header."""
    if scope["path"] == "/execute":
        return await body.ids()
    named = Headers(scope=scope).get("x-job-id")
    return [] if named is None else [named]


def _makes_jobs(path: str) -> bool:
    return path in _JOB_PATHS or (path.startswith("/v1/") and not path.endswith("/cancel"))


def _is_refusal(status: int) -> bool:
    return status >= 400 and status not in _NOT_REFUSED
