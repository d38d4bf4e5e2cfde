"""CORS: which other sites' pages may use the worker (`--cors-origin`). Pure ASGI, by Starlette's middleware."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from worker_orcd.jobs.errors import invalid

EXPOSED_HEADERS = (
    "X-Correlation-Id",
    "X-Request-Id",
    "Request-Id",
    "X-Job-Id",
    "Retry-After",
    "X-Should-Retry",
    "Preference-Applied",
    "WWW-Authenticate",
)
"""Response headers that scripts of allowed origins may read, in addition to those that every script may read."""


def allows(origins: tuple[str, ...], origin: str | None) -> bool:
    """Whether a page of this origin may use the worker; a request without an origin is no page's."""
    return origin is not None and ("*" in origins or origin in origins)


class CorsMiddleware(CORSMiddleware):
    """Answers the preflights of allowed origins, and lets their pages read every answer, errors and streams included.

    Stands outside of access control, because a browser sends no key with a preflight. Requests of other origins pass
    through as if there were no such middleware, so access control refuses them.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("*",),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
        )
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and allows(self._origins, Headers(scope=scope).get("origin")):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight; a refusal has the one shape of errors."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:  # the first status of errors
            return answer
        refusal = invalid("this method is not allowed across origins", "Access-Control-Request-Method")
        allowed = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return JSONResponse({"error": refusal.body()}, status_code=refusal.http_status, headers=allowed)
