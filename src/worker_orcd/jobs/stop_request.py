"""Stop requests: reason, time and origin."""

from dataclasses import dataclass
from enum import StrEnum


class StopReason(StrEnum):
    """Why a job is stopped before its natural end. Only the terminal event depends on the reason."""

    CLIENT = "client"
    DISCONNECT = "disconnect"
    SHUTDOWN = "shutdown"
    SUPERSEDED = "superseded"
    TIMEOUT = "timeout"
    """Ends in `INFERENCE_TIMEOUT`; the others end in `CANCELLED`."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """One request to stop a job.

    Attributes:
        reason: why the job is stopped.
        accepted_at: when it was accepted, in seconds of the monotonic clock. A receipt's times count from here.
        correlation_id: the correlation id of the client's request, if any.
        superseded_by: the id of the newer job, if the reason is `superseded`.
    """

    reason: StopReason
    accepted_at: float
    correlation_id: str | None = None
    superseded_by: str | None = None


STOP_MESSAGES = {
    StopReason.CLIENT: "Job cancelled by client request",
    StopReason.DISCONNECT: "Job cancelled because its last reader left",
    StopReason.SHUTDOWN: "Job cancelled because the worker shuts down",
    StopReason.SUPERSEDED: "Job cancelled because a newer job superseded it",
}
