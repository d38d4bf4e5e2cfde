"""Errors of the client library."""

from worker_orcd.client.model import Receipt


class WorkerError(Exception):
    """Base class of all client errors. `code` is an error code of the worker, or `UNREACHABLE`.

    Attributes:
        correlation_id: the correlation id in the worker's log events.
        retriable: whether the same request may succeed later.
    """

    def __init__(
        self, code: str, message: str, *, correlation_id: str | None = None, retriable: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.correlation_id = correlation_id
        self.retriable = retriable


class WorkerUnreachable(WorkerError):
    """The worker cannot be reached, or the connection was lost.

    Attributes:
        sent: whether the request may have reached the worker; if not, no job was started.
    """

    def __init__(self, message: str, *, correlation_id: str | None = None, sent: bool = True) -> None:
        super().__init__("UNREACHABLE", message, correlation_id=correlation_id, retriable=True)
        self.sent = sent


class WorkerRefused(WorkerError):
    """The worker refused a request; no job was started.

    Attributes:
        status: HTTP status.
        param: the field at fault.
        retry_after_sec: seconds after which to retry.
    """

    def __init__(  # noqa: PLR0913  # all that an answer says
        self,
        code: str,
        message: str,
        *,
        status: int,
        param: str | None = None,
        retriable: bool = False,
        retry_after_sec: float | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(code, message, correlation_id=correlation_id, retriable=retriable)
        self.status = status
        self.param = param
        self.retry_after_sec = retry_after_sec


class JobFailed(WorkerError):
    """A job ended with an error. The job has the text so far."""


class JobCancelled(JobFailed):
    """A job was stopped.

    Attributes:
        reason: `client`, `disconnect`, `shutdown` …; `unknown` if the worker could not be reached.
        phase: the job's phase at the stop, or `unknown`.
        receipt: the result of the stop, if the worker could be reached.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        phase: str,
        receipt: Receipt | None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__("CANCELLED", message, correlation_id=correlation_id)
        self.reason = reason
        self.phase = phase
        self.receipt = receipt
