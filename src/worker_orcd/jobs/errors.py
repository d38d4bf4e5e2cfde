"""Errors that clients receive, classified by whose fault they are.

One table has each code's HTTP status, whether a retry can help, and whose fault the error is.
"""

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """Who must change something to avoid the error."""

    CLIENT = "client"
    WORKER = "worker"
    ENGINE = "engine"
    DEVICE = "device"


class ErrorCode(StrEnum):
    """The closed set of codes that clients can receive."""

    INVALID_REQUEST = "INVALID_REQUEST"
    UNAUTHORIZED = "UNAUTHORIZED"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_ID_IN_USE = "JOB_ID_IN_USE"
    QUEUE_FULL = "QUEUE_FULL"
    DRAINING = "DRAINING"
    CANCELLED = "CANCELLED"
    INFERENCE_TIMEOUT = "INFERENCE_TIMEOUT"
    MODEL_LOAD_FAILED = "MODEL_LOAD_FAILED"
    INSUFFICIENT_VRAM = "INSUFFICIENT_VRAM"
    VRAM_OOM = "VRAM_OOM"
    CUDA_ERROR = "CUDA_ERROR"
    ENGINE_LOST = "ENGINE_LOST"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """The meaning of a code for a client.

    Attributes:
        http_status: the status of an HTTP response with this code. Codes that only occur in streams are counted under
            this status in metrics.
        retriable: whether the same request may succeed later.
        fault: whose fault it is.
    """

    http_status: int
    retriable: bool
    fault: Fault


KINDS: dict[ErrorCode, ErrorKind] = {
    ErrorCode.INVALID_REQUEST: ErrorKind(400, retriable=False, fault=Fault.CLIENT),
    ErrorCode.UNAUTHORIZED: ErrorKind(401, retriable=False, fault=Fault.CLIENT),
    ErrorCode.JOB_NOT_FOUND: ErrorKind(404, retriable=False, fault=Fault.CLIENT),
    ErrorCode.JOB_ID_IN_USE: ErrorKind(409, retriable=False, fault=Fault.CLIENT),
    ErrorCode.QUEUE_FULL: ErrorKind(429, retriable=True, fault=Fault.WORKER),
    ErrorCode.DRAINING: ErrorKind(503, retriable=True, fault=Fault.WORKER),
    ErrorCode.CANCELLED: ErrorKind(499, retriable=False, fault=Fault.CLIENT),
    ErrorCode.INFERENCE_TIMEOUT: ErrorKind(504, retriable=True, fault=Fault.WORKER),
    ErrorCode.MODEL_LOAD_FAILED: ErrorKind(500, retriable=False, fault=Fault.ENGINE),
    ErrorCode.INSUFFICIENT_VRAM: ErrorKind(500, retriable=False, fault=Fault.DEVICE),
    ErrorCode.VRAM_OOM: ErrorKind(500, retriable=True, fault=Fault.DEVICE),
    ErrorCode.CUDA_ERROR: ErrorKind(500, retriable=True, fault=Fault.DEVICE),
    ErrorCode.ENGINE_LOST: ErrorKind(500, retriable=True, fault=Fault.ENGINE),
    ErrorCode.INTERNAL: ErrorKind(500, retriable=True, fault=Fault.WORKER),
}


class JobError(Exception):
    """A refusal or failure that a client receives.

    Args:
        code: the error's code, which determines HTTP status and retriability.
        message: one sentence.
        param: the faulty request field, if any.
        http_status: overrides the code's status (413, 405 and 404 share `INVALID_REQUEST`).
        retry_after_sec: value of `Retry-After`, in seconds.
        details: further fields of the response.
        openai_code: the code that OpenAI's clients expect, if it is not `code`.
    """

    def __init__(  # noqa: PLR0913  # all that an answer says
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        http_status: int | None = None,
        retry_after_sec: int | None = None,
        details: dict[str, object] | None = None,
        openai_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.http_status = http_status or KINDS[code].http_status
        self.retry_after_sec = retry_after_sec
        self.details = details or {}
        self.openai_code = openai_code

    @property
    def retriable(self) -> bool:
        """Whether the same request may succeed later."""
        return KINDS[self.code].retriable

    def body(self) -> dict[str, object]:
        """The `error` object of a response: `code`, `message`, `retriable`, and `param` and details if known."""
        error: dict[str, object] = {
            "code": self.code.value,
            "message": self.message,
            "retriable": self.retriable,
        }
        if self.param is not None:
            error["param"] = self.param
        return error | self.details


def invalid(message: str, param: str | None = None, *, http_status: int = 400) -> JobError:
    """An invalid request, which the client must change."""
    return JobError(ErrorCode.INVALID_REQUEST, message, param=param, http_status=http_status)


def traceable(code: ErrorCode, message: str, correlation_id: str | None) -> str:
    """A message for clients. That of an internal error has the correlation id, which leads to its log events."""
    if code is not ErrorCode.INTERNAL or not correlation_id or correlation_id in message:
        return message
    return f"{message}, correlation id {correlation_id}"


def id_in_use() -> JobError:
    """Another live job has this id."""
    return JobError(ErrorCode.JOB_ID_IN_USE, "a live job has this job_id", param="job_id")
