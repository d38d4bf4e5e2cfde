"""`POST /shutdown`: the same as SIGTERM."""

from collections.abc import Callable

from fastapi import APIRouter, Request

from worker_orcd.api import schema
from worker_orcd.api.access import require_operator


def router(shut_down: Callable[[str], None]) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["health"])

    @routes.post(
        "/shutdown",
        summary="Drain, then exit 0; the same as SIGTERM; with keys, for operators",
        status_code=202,
        responses=schema.errors(401, 403),
    )
    async def shutdown(request: Request) -> dict[str, str]:
        require_operator(request)
        shut_down("POST /shutdown")
        return {"status": "draining"}

    return routes
