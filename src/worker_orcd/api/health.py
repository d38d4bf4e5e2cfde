"""`GET /health`, `/livez`, `/readyz` and `/metrics`. None of them queries the engine."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from worker_orcd.api import schema
from worker_orcd.api.access import is_operator, require_operator
from worker_orcd.worker.health import Status
from worker_orcd.worker.interface import WorkerInterface

_UNAVAILABLE: schema.Responses = {503: {"description": "Jobs make no progress, or no jobs are accepted"}}


def router(worker: WorkerInterface, *, private_load: bool) -> APIRouter:
    """The routes of these resources. With `private_load`, only operators see load figures."""
    routes = APIRouter(tags=["health"])

    def status_code(status: Status) -> int:
        return 200 if status is Status.HEALTHY else 503

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", summary="The worker's state and sizes", responses=_UNAVAILABLE)
    async def health(request: Request) -> JSONResponse:
        seen = worker.health(operator=is_operator(request), private_load=private_load)
        return JSONResponse(seen.data(), status_code=status_code(seen.status))

    @routes.head("/livez", include_in_schema=False)
    @routes.get(
        "/livez",
        summary="Liveness: 503 once no engine can be started any more, which a restart may fix",
        responses={503: {"description": "No engine can be started any more"}},
    )
    async def livez() -> JSONResponse:
        permanently_failed = worker.permanently_failed
        return JSONResponse(
            {"status": "permanently_failed" if permanently_failed else "alive"},
            status_code=503 if permanently_failed else 200,
        )

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", summary="Readiness: jobs are accepted and make progress", responses=_UNAVAILABLE)
    async def readyz() -> JSONResponse:
        status = worker.health(operator=False, private_load=True).status
        return JSONResponse({"status": status.value}, status_code=status_code(status))

    @routes.get(
        "/metrics",
        summary="Prometheus metrics; with keys, for operators",
        response_class=Response,
        responses=schema.errors(401, 403),
    )
    async def metrics(request: Request) -> Response:
        require_operator(request)
        return Response(await worker.metrics(), media_type=CONTENT_TYPE_LATEST)

    return routes
