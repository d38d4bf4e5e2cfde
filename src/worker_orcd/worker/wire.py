"""Converts jobs to messages for the engine, and messages of the engine to the core's types."""

from dataclasses import dataclass
from typing import Self

from worker_orcd import narration
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.request import MAX_STOP_TOKENS
from worker_orcd.protocol import messages
from worker_orcd.tool_calls.formats import ToolFormat


def to_submit(job: Job, formats: tuple[ToolFormat, ...] = ()) -> messages.Submit:
    """The message that submits a job's prompt to the engine, whose model writes tool calls in these formats."""
    request = job.request
    # A run that was requeued after its whole prompt was scored is not scored again.
    scored = request.scored_prompt if len(job.prompt_logprobs) < (job.prompt_length or 1) else None
    chars, sha256 = narration.prompt_digest(request.text)
    return messages.Submit(
        run=job.run,
        job_id=job.job_id,
        correlation_id=job.correlation_id,
        prompt=request.prompt if job.prompt_tokens is None else "",
        template=request.template,
        tokens=job.prompt_tokens,
        stop=request.stop,
        max_stop_tokens=MAX_STOP_TOKENS,
        sampling=request.sampling(job.seed),
        prompt_chars=chars,
        prompt_sha256=sha256,
        owner=job.owner,
        cache=_namespace(job) if request.cache_prompt and scored is None else None,
        prompt_logprobs=scored,
        constraint=_constraint(job, formats),
        priority=request.priority,
        order=job.order[0],
        marks=request.shown_marks,
        embed=request.dimensions_wanted,
    )


def to_begin(job: Job) -> messages.Begin:
    """The message that starts a job's generation, after its tokens so far."""
    return messages.Begin(job.run, job.max_tokens, tuple(job.tokens))


def _constraint(job: Job, formats: tuple[ToolFormat, ...]) -> messages.Constraint | None:
    """The constraint on a job's output."""
    given = job.request.constraint
    if given is None:
        return None
    return messages.Constraint(
        given.kind, given.text, given.lenient, formats if given.kind == "tools" else ()
    )


def _namespace(job: Job) -> str:
    """The namespace of a job's prefixes. Jobs with the same API key and the same salt share one."""
    return f"{job.owner}\0{job.request.cache_salt or ''}"


def released(stopped: messages.Stopped, now: Timestamp) -> Release:
    """What a stopped run released, and when, on the front's clock."""
    ago_ms = stopped.freed_ago_ms
    return Release(
        stopped_at=now.mono - stopped.stopped_ago_ms / 1000,
        freed_at=None if ago_ms is None else now.mono - ago_ms / 1000,
        cells_before=stopped.cells_before,
        cells_after=stopped.cells_after,
        prompt_processed=stopped.prompt_processed,
        prompt_cached=stopped.prompt_cached,
        cells_warm=stopped.cells_warm,
    )


def refusal(refused: messages.Rejected) -> JobError:
    """The error for a rejected prompt. The fault is the client's if a field is named."""
    code = ErrorCode.INVALID_REQUEST if refused.param else ErrorCode.INTERNAL
    return JobError(code, refused.message, param=refused.param)


def failure(end: messages.EndOfRun) -> JobError:
    """The error for a run that failed in the engine."""
    return JobError(ErrorCode(end.error_code or "INTERNAL"), end.error_message)


@dataclass(frozen=True, slots=True)
class KvUsage:
    """KV cells that live jobs hold, and KV cells kept for later jobs."""

    cells_used: int = 0
    cells_cached: int = 0

    @classmethod
    def after(cls, report: messages.Step | messages.Stopped | messages.Stored) -> Self:
        """The usage that the engine reports with a step, a stop or a copy to the prefix store."""
        return cls(report.cells_used, report.cells_cached)
