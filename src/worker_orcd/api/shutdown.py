"""`POST /shutdown`: the same as SIGTERM."""

from collections.abc import Callable

from fastapi import APIRouter


def router(shut_down: Callable[[str], None]) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["health"])

    @routes.post("/shutdown", summary="Drain, then exit 0; the same as SIGTERM", status_code=202)
    async def shutdown() -> dict[str, str]:
        shut_down("POST /shutdown")
        return {"status": "draining"}

    return routes
