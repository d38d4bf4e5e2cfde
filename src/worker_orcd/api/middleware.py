"""Middleware for every request. Pure ASGI.

Never use `BaseHTTPMiddleware`: it hides disconnects from streams.
"""

import json
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker_orcd import narration
from worker_orcd.api.access import OPEN_PATHS
from worker_orcd.api.connection import RESERVED, too_many_connections
from worker_orcd.api.error_responses import ANTHROPIC_PATHS, SAFE_HEADERS, Refuse, error_content, internal
from worker_orcd.jobs.errors import JobError, invalid
from worker_orcd.narration import context

MAX_BODY_BYTES = 1 << 20
SEND_BODY = "send_body"
"""Key in a request's state: the server's own `send`. Middleware only needs the start of a response, so a stream's
chunks bypass it."""
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""Version, trace id, and what a later version may have added."""


class CorrelationMiddleware:
    """Gives every request and its response a correlation id: the client's if it sent a valid one, otherwise a new
    one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        chosen = context.accept_correlation_id(
            headers.get("x-correlation-id"),
            headers.get("x-request-id"),
            _trace_id(headers.get("traceparent")),
        )
        token = context.correlation_id.set(chosen)
        scope.setdefault("state", {})[SEND_BODY] = send

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered["X-Correlation-Id"] = chosen
                answered.update(SAFE_HEADERS)
                if scope["path"].startswith("/v1/"):
                    answered["X-Request-Id"] = chosen  # Read by OpenAI's packages.
                if scope["path"].startswith(ANTHROPIC_PATHS):
                    answered["Request-Id"] = chosen  # Read by Anthropic's packages.
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            context.correlation_id.reset(token)


class ErrorMiddleware:
    """Turns unexpected exceptions into error responses, and logs them with their traceback."""

    def __init__(self, app: ASGIApp, refuse: Refuse, narrator: narration.Narrator) -> None:
        self.app = app
        self._refuse = refuse
        self._narrator = narrator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False

        async def send_watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_watched)
        except ClientDisconnect:
            return  # The client left while it was sending the body: no job was made, and no response is needed.
        except JobError as error:
            answer = self._refuse(error, scope["path"])
            if not started:  # A started stream can only be cut off, by closing the connection: uvicorn does.
                await answer(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            failure = internal()
            self._narrator.emit(
                narration.Error.from_exception(
                    error, code=failure.code.value, message=failure.message, http_status=failure.http_status
                )
            )
            if not started:
                await send_error(failure, scope["path"], send)


class BodyLimitMiddleware:
    """Refuses bodies over 1 MiB, by their declared or their actual length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        expected = int(declared) if declared.isdigit() else 0
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            if expected > MAX_BODY_BYTES:
                raise _too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise _too_large()
            return message

        await self.app(scope, receive_counted, send)


class UnsupportedMiddleware:
    """Refuses unsupported HTTP versions and codings, which the parser would ignore."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it.

        Raises:
            JobError: `INVALID_REQUEST`, with 505, 501 or 415.
        """
        if scope["type"] == "http":
            if scope["http_version"] not in ("1.0", "1.1"):
                raise invalid("this HTTP version is not supported", http_status=505)
            headers = Headers(scope=scope)
            transfer = ",".join(headers.getlist("transfer-encoding")).strip().lower()
            if transfer not in ("", "chunked"):
                raise invalid("only chunked is supported", "Transfer-Encoding", http_status=501)
            content = ",".join(headers.getlist("content-encoding")).strip().lower()
            if content not in ("", "identity"):
                raise invalid("encoded bodies are not supported", "Content-Encoding", http_status=415)
        await self.app(scope, receive, send)


class ReserveMiddleware:
    """Reserves the last connections for stopping jobs and for health, so that many readers cannot block these."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it.

        Raises:
            JobError: `QUEUE_FULL`.
        """
        if scope["type"] == "http" and scope.get("state", {}).get(RESERVED):
            cancels = scope["method"] == "POST" and scope["path"].endswith("/cancel")
            if not cancels and scope["path"] not in OPEN_PATHS:
                raise too_many_connections()
        await self.app(scope, receive, send)


def _trace_id(traceparent: str | None) -> str | None:
    """The trace id of a W3C `traceparent`: the correlation id of a request that has no other."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    return found[2] if found and not (found[1] == "00" and found[3]) else None


def _too_large() -> JobError:
    return invalid(f"the body is larger than {MAX_BODY_BYTES} bytes", http_status=413)


async def send_error(error: JobError, path: str, send: Send) -> None:
    """Send an error response directly to the server."""
    body = json.dumps(error_content(error, path)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
