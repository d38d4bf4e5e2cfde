"""Who may ask: API keys, or else only what comes from this machine and was meant for it. Pure ASGI."""

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from worker_orcd.api.keys import ApiKeys
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.narration import context

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/"})
"""What orchestrators ask without a key, and the console's page."""
OPEN_FILES = "/console/"
"""The console's files: they are the same for everybody, and ask for a key."""
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_OWNER = "worker_orcd.owner"


def owner_of(request: HTTPConnection) -> str:
    """Whose request it is; everybody's are the same without keys."""
    return owner_of_scope(request.scope)


def owner_of_scope(scope: Scope) -> str:
    """The same, for middleware."""
    owner: str = scope.get(_OWNER, "")
    return owner


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask: who has one of `keys`; without keys, whoever reaches `host`, if that is this machine only or the
    operator said `insecure`."""

    keys: ApiKeys | None = None
    host: str = "127.0.0.1"
    insecure: bool = False


class AccessMiddleware:
    """With keys: no request without one. Without keys, on a loopback address: no page in a browser may ask in a
    user's name, neither by a name that was rebound to this machine (`Host`) nor across origins (`Origin`)."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self.app = app
        self._keys = access.keys
        self._hosts = None if access.keys or access.insecure else _THIS_MACHINE | {access.host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it.

        Raises:
            JobError: `UNAUTHORIZED` or `INVALID_REQUEST`.
        """
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            _check_host(headers, scope["http_version"])
            if self._keys is not None:
                if scope["path"] not in OPEN_PATHS and not scope["path"].startswith(OPEN_FILES):
                    scope[_OWNER] = self._owner(headers, self._keys)
                    context.owner.set(scope[_OWNER])  # Every request has a context of its own.
            elif self._hosts is not None:
                self._check_origin(headers, self._hosts)
        await self.app(scope, receive, send)

    @staticmethod
    def _owner(headers: Headers, keys: ApiKeys) -> str:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        owner = keys.owner_of(key)
        if owner is None:
            raise JobError(ErrorCode.UNAUTHORIZED, "a valid API key is required: Authorization: Bearer KEY")
        return owner

    @staticmethod
    def _check_origin(headers: Headers, hosts: frozenset[str]) -> None:
        host = headers.get("host")
        if host is not None and _parts(f"//{host}").hostname not in hosts:
            raise invalid("Host is not this machine; without API keys it has to be", "Host")
        origin = headers.get("origin")
        if origin is not None and _parts(origin).netloc.lower() != (host or "?").lower():
            raise invalid("Origin is another site; without API keys it cannot be", "Origin")


def _check_host(headers: Headers, http_version: str) -> None:
    """Whoever stands between may have looked at another `Host` than we do (RFC 9112, 3.2)."""
    hosts = len(headers.getlist("host"))
    if hosts > 1 or (hosts == 0 and http_version == "1.1"):
        raise invalid(f"a request has one Host; this one has {hosts or 'none'}", "Host")


def _parts(address: str) -> SplitResult:
    """What an address consists of; of nothing, if it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
