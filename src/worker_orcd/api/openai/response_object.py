"""A job as a response object, and the items of its output."""

from collections.abc import Sequence
from typing import Any, cast

from worker_orcd.api.openai.requests import ResponseJob, ResponseRequest
from worker_orcd.api.openai.response_bodies import logprobs_content, text_of, usage_of
from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.events import End, Error
from worker_orcd.jobs.job import Job


def response_of(job: Job, model: str, *, with_output: bool = True) -> dict[str, Any]:
    """The response object, as the job is now."""
    return {**head_of(job, model, status_of(job)), "output": output_of(job) if with_output else []}


def output_of(job: Job) -> list[dict[str, Any]]:
    """The items of the response's output, as the job is now."""
    said, status = text_of(job), status_of(job)
    begun = status in ("completed", "incomplete") or (bool(said) and not job.live)
    return [message_of(job, said, status)] if begun else []


def asked_of(job: Job) -> ResponseRequest:
    """What was asked."""
    return cast("ResponseJob", job.request).asked


def status_of(job: Job) -> str:
    """Its status, in the words of the API."""
    match job.terminal:
        case End(stop_reason="length"):
            return "incomplete"
        case End():
            return "completed"
        case Error(code=ErrorCode.CANCELLED):
            return "cancelled"
        case Error():
            return "failed"
        case None:
            return "queued" if job.started_at is None else "in_progress"


def head_of(job: Job, model: str, status: str) -> dict[str, Any]:
    """All of a response object but its output."""
    asked, terminal = asked_of(job), job.terminal
    final = status not in ("queued", "in_progress")
    error = None
    if isinstance(terminal, Error) and status == "failed":
        error = {"code": terminal.openai_code or terminal.code.value, "message": terminal.message}
    return {
        "id": job.job_id,
        "object": "response",
        "created_at": int(job.accepted.unix),
        "status": status,
        "background": bool(asked.background),
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": model,
        "parallel_tool_calls": True,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": asked.stored,
        "temperature": job.request.temperature,
        "text": asked.text.shown() if asked.text is not None else {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": job.request.top_p,
        "truncation": "disabled",
        "usage": response_usage(job) if final else None,
    }


def response_usage(job: Job) -> dict[str, Any]:
    """Tokens in and out, in the words of the API."""
    used = usage_of([job])
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": used["prompt_tokens_details"],
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }


def message_of(job: Job, text: str, status: str) -> dict[str, Any]:
    """The message that a job says, with this text, as an item."""
    kept = status if status in ("completed", "in_progress") else "incomplete"
    name = "msg_" + job.job_id.removeprefix("resp_")
    part = text_part(text, logprobs_content(job.events) if text else [])
    return {"id": name, "type": "message", "role": "assistant", "status": kept, "content": [part]}


def text_part(text: str, logprobs: Sequence[dict[str, object]] = ()) -> dict[str, Any]:
    """A part of that message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
