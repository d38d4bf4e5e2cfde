"""Error responses, all of the same shape."""

from collections.abc import Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from worker_orcd import narration
from worker_orcd.jobs.errors import ErrorCode, JobError, traceable
from worker_orcd.jobs.events import Error
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.interface import WorkerInterface

OPENAI_PATHS = "/v1/"
"""Below these paths, errors have OpenAI's shape with the worker's fields."""
ANTHROPIC_PATHS = "/v1/messages"
"""Below these paths, errors have Anthropic's shape with the worker's fields."""
SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
"""Header of every response: other sites' pages may not load it as a script, a style or an image."""
_TYPES = {ErrorCode.QUEUE_FULL: "rate_limit_error", ErrorCode.CANCELLED: "cancelled_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_content(error: JobError, path: str) -> dict[str, object]:
    """The JSON object of an error response to a request for `path`."""
    if path.startswith(ANTHROPIC_PATHS):
        return anthropic_error(error)
    return openai_error(error) if path.startswith(OPENAI_PATHS) else {"error": error.body()}


def anthropic_error(error: JobError) -> dict[str, object]:
    """An error in Anthropic's format."""
    whose = "invalid_request_error" if error.http_status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    kind = "cancelled_error" if error.code is ErrorCode.CANCELLED else _ANTHROPIC_TYPES.get(error.http_status)
    # Coding agents shorten the conversation when they find these words.
    too_long = "prompt is too long: " if error.openai_code == "context_length_exceeded" else ""
    return {
        "type": "error",
        "error": {"type": kind or whose, **error.body(), "message": too_long + error.message},
        "request_id": correlation_id.get(),
    }


def openai_error(error: JobError) -> dict[str, object]:
    """An error in OpenAI's format."""
    whose = (
        "invalid_request_error" if error.http_status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    )
    kind = _TYPES.get(error.code, whose)
    code = {} if error.openai_code is None else {"code": error.openai_code}
    return {"error": {"param": None, "type": kind, **error.body(), **code}}


def error_headers(error: JobError, path: str) -> dict[str, str]:
    """Headers of an error response."""
    headers = {"WWW-Authenticate": "Bearer"} if error.code is ErrorCode.UNAUTHORIZED else {}
    if error.retry_after_sec is not None:
        headers["Retry-After"] = str(error.retry_after_sec)
    if path.startswith(OPENAI_PATHS):
        # OpenAI's SDKs retry after 409 and every 5xx unless this header forbids it.
        headers["X-Should-Retry"] = "true" if error.retriable else "false"
    return headers


class EndedBeforeStart(JobError):
    """An accepted job has ended before its response began. The job's end is already logged and counted."""

    def __init__(self, end: Error) -> None:
        param = str(end.details.get("param") or "prompt")
        super().__init__(end.code, end.message, param=param, openai_code=end.openai_code)


Refuse = Callable[[JobError, str], Response]
"""Makes the response to a refused request for a path, counts it and logs it."""


def install(app: FastAPI, worker: WorkerInterface, narrator: narration.Narrator) -> Refuse:
    """Make every error of this app an error response that is counted and logged. Returns the function that does so."""

    def answer(error: JobError, path: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        error.message = traceable(error.code, error.message, correlation_id.get())
        if not isinstance(error, EndedBeforeStart):
            worker.count_refusal(error.code)
            narrator.emit(
                narration.Error(
                    code=error.code.value,
                    message=error.message,
                    http_status=error.http_status,
                    param=error.param,
                )
            )
        return JSONResponse(
            error_content(error, path),
            status_code=error.http_status,
            headers={**(headers or {}), **error_headers(error, path)},
        )

    @app.exception_handler(JobError)
    async def refused(request: Request, error: JobError) -> JSONResponse:
        return answer(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def by_framework(request: Request, error: HTTPException) -> JSONResponse:
        return answer(from_framework(error), request.url.path, error.headers)

    return answer


def from_framework(error: HTTPException) -> JobError:
    """An error of the framework (wrong path or method) as a `JobError`."""
    phrase = HTTPStatus(error.status_code).phrase.lower()
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return JobError(ErrorCode.INTERNAL, phrase, http_status=error.status_code)
    return JobError(ErrorCode.INVALID_REQUEST, phrase, http_status=error.status_code)


def internal() -> JobError:
    """An internal error. Its log event has the correlation id that is in the message."""
    code = ErrorCode.INTERNAL
    return JobError(code, traceable(code, "internal error", correlation_id.get()))
