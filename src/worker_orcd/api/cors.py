"""CORS: which other sites' pages may use the worker (`--cors-origin`). Pure ASGI, based on Starlette's middleware."""

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
"""Response headers that scripts of allowed origins may read, in addition to those that CORS always allows."""


def allows(origins: tuple[str, ...], origin: str | None) -> bool:
    """Whether pages of this origin may use the worker. A request without an origin does not come from a page."""
    return origin is not None and ("*" in origins or origin in origins)


class CorsMiddleware(CORSMiddleware):
    """Answers the preflights of allowed origins, and lets their pages read every response, errors and streams included.

    It comes before access control, because a browser sends no key with a preflight. It does not touch requests of other
    origins, so access control refuses them.
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
        """The response to a preflight. A refusal is an error response like any other."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:  # Not an error.
            return answer
        refusal = invalid("this method is not allowed across origins", "Access-Control-Request-Method")
        allowed = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return JSONResponse({"error": refusal.body()}, status_code=refusal.http_status, headers=allowed)
