"""Health from in-memory state; never queries the engine, so it is quick and never blocks."""

import time
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from worker_orcd.supervisor.supervisor import EngineState
from worker_orcd.worker.worker import Worker

_REASONS = {
    EngineState.LOADING: "the engine is restarting",
    EngineState.READY: "the engine is restarting",
    EngineState.STUCK: "the engine does not answer",
    EngineState.LOST: "the engine is restarting",
    EngineState.PERMANENTLY_FAILED: "the engine cannot be started any more",
}
"""Reasons for `unhealthy`, without details for operators: paths, signals, exit codes."""


class Status(StrEnum):
    """Whether jobs make progress."""

    LOADING = "loading"
    HEALTHY = "healthy"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Health:
    """The body of `GET /health`. Facts about the model are null without a loaded engine, and load figures are null for
    clients that may not see them."""

    status: Status
    reason: str | None
    worker_id: str
    model: str | None
    device: str | None
    resident: bool
    quant_kind: str | None
    vram_bytes_used: int
    tokenizer_kind: str | None
    vocab_size: int | None
    context_length: int | None
    kv_cells_total: int
    kv_cells_used: int | None
    kv_cells_cached: int | None
    prefix_store_bytes: int | None
    jobs_running: int | None
    jobs_queued: int | None
    engine_pid: int | None
    engine_restarts: int
    exact: bool
    uptime_seconds: float

    def for_everybody(self, engine: EngineState, *, private_load: bool) -> "Health":
        """The same for clients that are not operators: without paths, and with `private_load` without load figures."""
        seen = self if self.reason is None else replace(self, reason=_REASONS[engine])
        return seen.without_load() if private_load else seen

    def without_load(self) -> "Health":
        """The same without load figures."""
        return replace(
            self,
            kv_cells_used=None,
            kv_cells_cached=None,
            prefix_store_bytes=None,
            jobs_running=None,
            jobs_queued=None,
        )

    def data(self) -> dict[str, object]:
        """The JSON object."""
        return asdict(self)


def status_of(worker: Worker) -> Status:
    """The worker's status. Never `healthy` while the engine is dead or stuck."""
    supervisor = worker.supervisor
    if worker.dispatcher.draining:
        return Status.DRAINING
    match supervisor.state:
        case EngineState.READY:
            return Status.HEALTHY
        case EngineState.LOADING if not supervisor.ever_ready:
            return Status.LOADING
        case _:
            return Status.UNHEALTHY


def health_of(worker: Worker) -> Health:
    """The current health of this worker."""
    status = status_of(worker)
    engine = worker.engine
    return Health(
        status=status,
        reason=worker.supervisor.reason if status is Status.UNHEALTHY else None,
        worker_id=worker.worker_id,
        model=engine.model if engine else None,
        device=engine.device if engine else None,
        resident=engine.resident if engine else False,
        quant_kind=engine.quant_kind if engine else None,
        vram_bytes_used=engine.vram_bytes if engine else 0,
        tokenizer_kind=engine.tokenizer_kind if engine else None,
        vocab_size=engine.vocab_size if engine else None,
        context_length=engine.cells_per_job if engine else None,
        kv_cells_total=engine.cells if engine else 0,
        kv_cells_used=worker.kv_usage.cells_used,
        kv_cells_cached=worker.kv_usage.cells_cached,
        prefix_store_bytes=worker.prefix_store_bytes,
        jobs_running=worker.dispatcher.queue.running,
        jobs_queued=len(worker.dispatcher.queue),
        engine_pid=worker.supervisor.pid,
        engine_restarts=worker.supervisor.restarts,
        exact=engine.exact if engine else False,
        uptime_seconds=round(time.monotonic() - worker.started_at, 3),
    )
