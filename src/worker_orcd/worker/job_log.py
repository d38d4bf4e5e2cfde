"""Emits log events about jobs and engines."""

import time
from collections.abc import Sequence
from typing import Literal

from worker_orcd import narration
from worker_orcd.jobs.clock import millis
from worker_orcd.jobs.events import End, Error
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.receipt import Receipt
from worker_orcd.jobs.stop_target import TargetState
from worker_orcd.protocol.messages import AuditFault, NarrationEvent, Percent, Ready
from worker_orcd.supervisor.engine import Death
from worker_orcd.worker.observer import Observer, StopRequested

_TARGET_STATES: dict[TargetState, Literal["live", "finished", "unknown"]] = {
    TargetState.LIVE: "live",
    TargetState.STOPPING: "live",
    TargetState.FINISHED: "finished",
    TargetState.UNKNOWN: "unknown",
}


class JobLog(Observer):
    """Emits log events, each with the correlation id of its request."""

    def __init__(self, narrator: narration.Narrator, model_path: str) -> None:
        self._narrator = narrator
        self._model_path = model_path

    # Jobs.

    def stop_requested(self, request: StopRequested) -> None:
        """Log the stop request, also for a target that is not live."""
        state, job = request.target
        self._narrator.emit(
            narration.Cancel(
                job_id=request.job_id,
                known=_TARGET_STATES[state],
                reason=request.stop.reason.value,
                phase=job.phase.value if job else None,
                repeated=state is TargetState.STOPPING,
                group=request.group,
                superseded_by=request.stop.superseded_by,
            ),
            correlation_id=request.stop.correlation_id or (job.correlation_id if job else None),
            owner=job.owner if job else None,
        )

    def reader_left(self, job: Job) -> None:
        """The last reader of a job disconnected."""
        self._narrator.emit(
            narration.Disconnect(
                job_id=job.job_id, phase=job.phase.value, on_disconnect=job.request.on_disconnect
            ),
            correlation_id=job.correlation_id,
            owner=job.owner,
        )

    def timed_out(self, job: Job) -> None:
        """A job's time limit has passed."""
        self._narrator.emit(
            narration.Timeout(
                job_id=job.job_id, timeout_ms=round(job.timeout_sec * 1000), phase=job.phase.value
            ),
            correlation_id=job.correlation_id,
            owner=job.owner,
        )

    def ended(self, job: Job) -> None:
        """A job has its terminal event."""
        action = _ending(job)
        if action is not None:
            self._narrator.emit(action, correlation_id=job.correlation_id, owner=job.owner)

    # The engine.

    def loading(self) -> None:
        """The model is about to be loaded."""
        self._narrator.emit(narration.ModelLoadStart(path=self._model_path))

    def load_progress(self, percent: Percent) -> None:
        """Part of the model is loaded."""
        self._narrator.emit(narration.ModelLoadProgress(path=self._model_path, percent=percent))

    def loaded(self, ready: Ready) -> None:
        """The first engine is ready."""
        self._narrator.emit(
            narration.ModelLoadComplete(
                path=self._model_path,
                load_ms=ready.load_ms,
                device=ready.device,
                context_length=ready.cells_per_job,
                cells=ready.cells,
                vocab_size=ready.vocab_size,
                exact=ready.exact,
            )
        )

    def restarted(self, pid: int | None, restarts: int, lost_at: float) -> None:
        """A new engine replaces the one that was lost at `lost_at` (monotonic seconds)."""
        ready_ms = millis(lost_at, time.monotonic())
        self._narrator.emit(
            narration.EngineRestarted(engine_pid=pid or 0, restarts=restarts, ready_ms=ready_ms)
        )

    def lost(self, death: Death, jobs: Sequence[Job]) -> None:
        """An engine died unexpectedly, or was killed because it was stuck."""
        self._narrator.emit(
            narration.EngineLost(
                engine_pid=death.pid or 0,
                why=death.why,
                exit_code=death.exit_code,
                signal=death.signal,
                jobs_running=len(jobs),
            )
        )

    def audit_fault(self, fault: AuditFault, job: Job | None) -> None:
        """An audit of KV cells found a difference."""
        now = "it is repaired" if fault.repaired else "the sequence is not used until its cells are free"
        self._narrator.emit(
            narration.Error(code="INTERNAL", message=f"{fault.message}; {now}"),
            correlation_id=job.correlation_id if job else None,
        )

    def narrated(self, event: NarrationEvent) -> None:
        """Pass an event of the engine to this process's listeners."""
        self._narrator.broadcast.emit(event.event, event.owner)

    def permanently_failed(self, reason: str, code: str) -> None:
        """No engine can be started any more."""
        self._narrator.emit(narration.Error(code=code, message=reason))

    # The worker.

    def draining(self, running: int, queued: int, drain_sec: float) -> None:
        """The drain begins: no further jobs are accepted."""
        self._narrator.emit(narration.Drain(jobs_running=running, jobs_queued=queued, drain_sec=drain_sec))


def _ending(job: Job) -> narration.Action | None:
    match job.receipt, job.terminal:
        case Receipt() as receipt, _:
            return narration.CancelComplete(
                job_id=job.job_id,
                reason=receipt.reason.value,
                phase=receipt.phase,
                stopped_ms=receipt.stopped_ms,
                freed_ms=receipt.freed_ms,
                terminal_ms=receipt.terminal_ms,
                prompt_tokens=receipt.prompt_tokens,
                tokens_out=receipt.tokens_out,
                cells_before=receipt.kv_cells_before,
                cells_after=receipt.kv_cells_after,
                cancel_correlation_id=receipt.cancel_correlation_id,
            )
        case None, End() as end:
            return narration.ExecuteEnd(
                job_id=job.job_id,
                tokens_out=end.tokens_out,
                decode_time_ms=end.decode_time_ms,
                stop_reason=end.stop_reason,
                queue_ms=millis(job.accepted.mono, job.started_at or job.accepted.mono),
                first_token_ms=millis(job.accepted.mono, job.first_token_at) if job.first_token_at else None,
            )
        case None, Error() as error:
            return narration.Error(code=error.code.value, message=error.message, job_id=job.job_id)
        case _:
            return None
