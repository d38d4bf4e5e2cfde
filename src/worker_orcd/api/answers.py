"""The one shape of every answer that is an error, wherever it comes from."""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from worker_orcd import narration
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.worker import Worker


def error_body(error: JobError) -> bytes:
    """The JSON body of an error answer."""
    return json.dumps({"error": error.body()}, ensure_ascii=False).encode()


def error_headers(error: JobError) -> dict[str, str]:
    """Headers that go with it."""
    headers = {"WWW-Authenticate": "Bearer"} if error.code is ErrorCode.UNAUTHORIZED else {}
    if error.retry_after_sec is not None:
        headers["Retry-After"] = str(error.retry_after_sec)
    return headers


Refuse = Callable[[JobError], Response]
"""Makes the answer to a refused request, counts it and narrates it."""


def install(app: FastAPI, worker: Worker, narrator: narration.Narrator) -> Refuse:
    """Give every error of this app the one shape, count it and narrate it. Returns what does so."""

    def answer(error: JobError, headers: Mapping[str, str] | None = None) -> JSONResponse:
        worker.metrics.refusals.labels(error.code.value).inc()
        narrator.tell(
            narration.Error(
                code=error.code.value,
                message=error.message,
                http_status=error.http_status,
                param=error.param,
            )
        )
        return JSONResponse(
            {"error": error.body()},
            status_code=error.http_status,
            headers={**(headers or {}), **error_headers(error)},
        )

    @app.exception_handler(JobError)
    async def refused(_: Request, error: JobError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def by_framework(_: Request, error: HTTPException) -> JSONResponse:
        return answer(from_framework(error), error.headers)

    return answer


def from_framework(error: HTTPException) -> JobError:
    """What the framework refuses: a wrong path, a wrong method."""
    phrase = HTTPStatus(error.status_code).phrase.lower()
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return JobError(ErrorCode.INTERNAL, phrase, http_status=error.status_code)
    return JobError(ErrorCode.INVALID_REQUEST, phrase, http_status=error.status_code)


def internal() -> JobError:
    """Our fault. The correlation id in the message is how it is found in the narration."""
    return JobError(ErrorCode.INTERNAL, f"internal error, correlation id {correlation_id.get()}")
