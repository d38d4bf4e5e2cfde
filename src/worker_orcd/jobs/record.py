"""Records: the facts about a job that are kept after its end."""

from worker_orcd.jobs.clock import millis, rfc3339
from worker_orcd.jobs.events import End, Error, outcome_of
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import shown_as


def record_of(job: Job) -> dict[str, object]:
    """The record in `GET /jobs/{job_id}`. Times are milliseconds from the job's acceptance."""
    terminal = job.terminal

    def since_accepted(at: float | None) -> float | None:
        return None if at is None else millis(job.accepted.mono, at)

    return {
        "job_id": job.job_id,
        "incarnation": job.incarnation,
        "state": shown_as(job.state).value if terminal is None else outcome_of(terminal),
        "phase": job.phase.value,
        "correlation_id": job.correlation_id,
        "accepted_at": rfc3339(job.accepted.unix),
        "queue_ms": since_accepted(job.started_at),
        "first_token_ms": since_accepted(job.first_token_at),
        "ended_ms": since_accepted(job.ended_at),
        "decode_time_ms": job.decode_time_ms,
        "prompt_tokens": job.prompt_length,
        "prompt_tokens_processed": job.prompt_processed,
        "prompt_tokens_cached": job.prompt_cached,
        "tokens_out": job.tokens_out,
        "max_tokens": job.max_tokens or None,
        "requeues": job.requeues,
        "group": job.request.group,
        "priority": job.request.priority,
        "supersedes": job.request.supersedes,
        "superseded_by": job.stop.superseded_by if job.stop else None,
        "seed": job.seed,
        "timeout_ms": round(job.timeout_sec * 1000),
        "stop_reason": terminal.stop_reason if isinstance(terminal, End) else None,
        "error": terminal.data() if isinstance(terminal, Error) else None,
        "receipt": None if job.receipt is None else job.receipt.data(),
    }
