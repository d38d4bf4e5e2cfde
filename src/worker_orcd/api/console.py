"""`GET /`: the console, a web page. Its files are part of the package; nothing is fetched from elsewhere."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from worker_orcd.jobs.errors import invalid

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def router() -> APIRouter:
    """The routes of the console's files."""
    routes = APIRouter(include_in_schema=False)
    kept = {
        file.name: file.read_bytes()
        for file in files("worker_orcd.console").iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }

    @routes.get("/")
    async def page() -> Response:
        return _file("index.html")

    @routes.get("/console/{name}")
    async def part(name: str) -> Response:
        return _file(name)

    def _file(name: str) -> Response:
        if name not in kept:
            raise invalid("not found", http_status=404)
        kind = _TYPES[name.rpartition(".")[2]]
        return Response(kept[name], media_type=f"{kind}; charset=utf-8", headers=_HEADERS)

    return routes
