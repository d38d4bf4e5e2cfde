"""Access control: API keys, or, without keys, only requests from and to this machine. Pure ASGI."""

import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from worker_orcd.api.connection import ADMIT
from worker_orcd.api.cors import allows
from worker_orcd.api.keys import ApiKeys, Caller
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.narration import context
from worker_orcd.settings import flag

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/"})
"""Paths that need no key: orchestrators' health checks, and the console's page."""
OPEN_FILES = "/console/"
"""Paths of the console's files, which need no key: they are the same for all clients, and the page asks for a key."""
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_OWNER = "worker_orcd.owner"
_OPERATOR = "worker_orcd.operator"
_AUTHORITY = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(?P<authority>[^/]+)")
_OWN_PAGES = frozenset({"same-origin", "none"})
"""Values of `Sec-Fetch-Site` for requests by the console's page or by the browser's user."""


def owner_of(request: HTTPConnection) -> str:
    """The owner of a request. Without keys, all requests have the same owner."""
    return owner_of_scope(request.scope)


def owner_of_scope(scope: Scope) -> str:
    """The owner of a request, for middleware."""
    owner: str = scope.get(_OWNER, "")
    return owner


def is_operator(request: HTTPConnection) -> bool:
    """Whether the request comes from an operator: it has an operator's key, or the worker has no keys."""
    operator: bool = request.scope.get(_OPERATOR, False)
    return operator


def require_operator(request: HTTPConnection) -> None:
    """Refuse the request if it does not come from an operator.

    Raises:
        JobError: `UNAUTHORIZED` with 403: the key is a tenant's.
    """
    if not is_operator(request):
        raise JobError(
            ErrorCode.UNAUTHORIZED,
            f"an operator's key is required, from the file of {flag('operator_key_file')}",
            http_status=403,
        )


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the worker: holders of one of `keys`; without keys, all clients that reach `host`, which must be a
    loopback address unless `insecure` is set."""

    keys: ApiKeys | None = None
    host: str = "127.0.0.1"
    insecure: bool = False
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the worker like the console's page."""


class AccessMiddleware:
    """With keys, refuses requests without one. Without keys, refuses requests of other sites' pages in a user's
    browser: across origins (`Origin`, `Sec-Fetch-Site`) unless the operator allows the origin, and, on a loopback
    address, by a name that was rebound to this machine (`Host`)."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self.app = app
        self._keys = access.keys
        self._cors_origins = access.cors_origins
        self._hosts = None if access.keys or access.insecure else _THIS_MACHINE | {access.host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it.

        Raises:
            JobError: `UNAUTHORIZED` or `INVALID_REQUEST`.
        """
        if scope["type"] == "http":
            context.owner.set(context.UNAUTHENTICATED)  # Every request has its own context.
            headers = Headers(scope=scope)
            _check_host(headers, scope["http_version"])
            if self._keys is None:
                self._check_page(headers, scope["method"], scope["path"])
                _admit(scope, Caller(owner="", operator=True))
            elif (caller := _caller(headers, self._keys)) is not None:
                _admit(scope, caller)
            elif scope["path"] not in OPEN_PATHS and not scope["path"].startswith(OPEN_FILES):
                raise JobError(
                    ErrorCode.UNAUTHORIZED, "a valid API key is required: Authorization: Bearer KEY"
                )
        await self.app(scope, receive, send)

    def _check_page(self, headers: Headers, method: str, path: str) -> None:
        host = headers.get("host", "").lower()
        name = _AUTHORITY.fullmatch(host)
        if host and name is None:
            raise invalid("Host is not a name or an address with an optional port", "Host")
        if name is not None and self._hosts is not None and name["name"].strip("[]") not in self._hosts:
            raise invalid("Host is not this machine; that requires API keys", "Host")
        origin = headers.get("origin")
        if allows(self._cors_origins, origin):
            return
        if origin is not None:
            found = _ORIGIN.fullmatch(origin.lower())
            if found is None or not host or found["authority"] != host:
                raise invalid("Origin is another site; that requires API keys or --cors-origin", "Origin")
        opens_console = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none").lower() not in _OWN_PAGES and not opens_console:
            raise invalid("another site's page; that requires API keys or --cors-origin", "Sec-Fetch-Site")


def _caller(headers: Headers, keys: ApiKeys) -> Caller | None:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    key = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return keys.caller(key)


def _admit(scope: Scope, caller: Caller) -> None:
    scope[_OWNER] = caller.owner
    scope[_OPERATOR] = caller.operator
    context.owner.set(caller.owner)
    if (admit := scope.get("state", {}).get(ADMIT)) is not None:
        admit()


def _check_host(headers: Headers, http_version: str) -> None:
    """Require exactly one `Host`: of several, a proxy may have checked another one than the worker (RFC 9112, 3.2)."""
    hosts = len(headers.getlist("host"))
    if hosts > 1 or (hosts == 0 and http_version == "1.1"):
        raise invalid(f"a request has one Host; this one has {hosts or 'none'}", "Host")
