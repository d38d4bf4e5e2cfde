"""`POST /cancel`: stop a job. Always 202, in any state of the job, any number of times."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from worker_orcd.api import schema
from worker_orcd.api.access import owner_of
from worker_orcd.api.prefer import wait_of
from worker_orcd.jobs.request import CancelRequest
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.interface import WorkerInterface

_EXAMPLE: dict[str, object] = {"job_id": "test-123"}
_ANSWER: dict[str, object] = {"status": "cancelling", "job_id": "test-123"}
_RECEIPT: dict[str, object] = {"status": "cancelled", "job_id": "test-123", "receipt": {"stopped_ms": 3.1}}


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["jobs"])

    @routes.post(
        "/cancel",
        summary="Stop a job (idempotent)",
        status_code=202,
        response_class=JSONResponse,
        responses=schema.answer(
            202, "In any state of the job, and for unknown ids", "application/json", example=_ANSWER
        )
        | schema.answer(
            200,
            "With `Prefer: wait=N`: the job has ended, with this receipt",
            "application/json",
            example=_RECEIPT,
        )
        | schema.errors(400, 413),
        openapi_extra=schema.body(CancelRequest, _EXAMPLE),
    )
    async def post(request: Request) -> JSONResponse:
        asked = CancelRequest.parse(await request.body())
        wait_sec = wait_of(",".join(request.headers.getlist("prefer")))
        body, waited = await cancel(worker, asked, owner_of(request), wait_sec)
        if not waited:
            return JSONResponse(body, status_code=202)
        return JSONResponse(body, headers={"Preference-Applied": f"wait={wait_sec}"})

    return routes


async def cancel(
    worker: WorkerInterface, asked: CancelRequest, owner: str, wait_sec: float
) -> tuple[dict[str, object], bool]:
    """Carry out a cancel, and wait for the ends of the stopped jobs.

    Returns:
        The response, and whether it contains the receipts.
    """
    requester = correlation_id.get() or ""
    if asked.job_id is not None:
        stopped = [asked.job_id]
        await worker.cancel(asked.job_id, requester, owner)
    else:
        stopped = await worker.cancel_group(asked.group or "", requester, owner)
    if wait_sec and (receipts := await worker.receipts(stopped, owner, wait_sec)):
        return _with_receipts(asked, receipts), True
    return {**asked.answer()}, False


def _with_receipts(asked: CancelRequest, records: list[dict[str, object]]) -> dict[str, object]:
    """The response with receipts, for a client that waited for the end."""
    body: dict[str, object] = {**asked.answer(), "status": "cancelled"}
    if asked.job_id is not None:
        body["receipt"] = records[0]["receipt"]
    else:
        body["jobs"] = [{"job_id": record["job_id"], "receipt": record["receipt"]} for record in records]
    return body
