"""A job as a response object of the API, and the items of its output."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

from worker_orcd.api.openai.input_items import Item
from worker_orcd.api.openai.output_items import Output, OutputItem, call_id
from worker_orcd.api.openai.response_bodies import usage_of
from worker_orcd.api.openai.response_request import ResponseJob, ResponseRequest
from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.events import End, Error
from worker_orcd.jobs.job import Job
from worker_orcd.sampling import Logprobs, logprobs_data
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.tool_calls.parser import Parser

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


def asked_of(job: Job) -> ResponseRequest:
    """The request that made the job."""
    return cast("ResponseJob", job.request).asked


def response_usage(job: Job) -> dict[str, Any]:
    """The numbers of input and output tokens, as the API's `usage`."""
    used = usage_of([job])
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": used["prompt_tokens_details"],
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }


def text_part(kind: str, text: str, logprobs: Sequence[Logprobs] = ()) -> dict[str, Any]:
    """A content part of a message or of reasoning."""
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_shown(logprobs)}


def logprobs_shown(logprobs: Sequence[Logprobs]) -> list[dict[str, object]]:
    """Log probabilities of tokens, in the API's format."""
    return [logprobs_data(one) for one in logprobs]


@dataclass(frozen=True, slots=True)
class ResponseObject:
    """A job in the API's format for responses.

    Attributes:
        job: the job.
        model: the model's name in the request.
        formats: returns the model's formats of tool calls, once it is loaded.
    """

    job: Job
    model: str
    formats: Callable[[], Collection[ToolFormat]]

    def whole(self, *, with_output: bool = True) -> dict[str, Any]:
        """The response object in the job's current state."""
        return {**self.head(self.status), "output": self.output() if with_output else []}

    @property
    def status(self) -> str:
        """The response's status, in the API's terms."""
        match self.job.terminal:
            case End(stop_reason="length"):
                return "incomplete"
            case End():
                return "completed"
            case Error(code=ErrorCode.CANCELLED):
                return "cancelled"
            case Error():
                return "failed"
            case None:
                return "queued" if self.job.started_at is None else "in_progress"

    def head(self, status: str) -> dict[str, Any]:
        """The response object without its output."""
        job, asked, terminal = self.job, asked_of(self.job), self.job.terminal
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
            "model": self.model,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": asked.stored,
            "temperature": job.request.temperature,
            "text": asked.text.shown() if asked.text is not None else {"format": {"type": "text"}},
            "tool_choice": asked.shown_choice,
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_p": job.request.top_p,
            "truncation": "disabled",
            "usage": response_usage(job) if final else None,
        }

    def new_output(self) -> Output:
        """The output before the job's first event."""
        return Output(self._parser, never_empty=True)

    def output(self) -> list[Item]:
        """The items of the output; none while the job is live."""
        output = self.new_output()
        if not self.job.live:
            output.take_all(self.job)
        return [self.item(one) for one in output.items]

    def item(self, item: OutputItem) -> Item:
        """An item in its current state."""
        shown: Item = {"id": self.item_id(item), "type": item.kind, "status": item.status}
        match item.kind:
            case "function_call":
                return {
                    **shown,
                    "call_id": call_id(self.job, item),
                    "name": item.name,
                    "arguments": item.text,
                }
            case "reasoning":
                shown["summary"] = []
            case "message":
                shown["role"] = "assistant"
        return {**shown, "content": [text_part(item.kind, item.text, item.logprobs)]}

    def item_id(self, item: OutputItem) -> str:
        """The id of an item."""
        place = f"_{item.place}" if item.place else ""
        return f"{_PREFIXES[item.kind]}_{self.job.job_id.removeprefix('resp_')}{place}"

    def empty_message(self) -> Item:
        """An item for a message without text."""
        return self.item(OutputItem("message", len(self.output()), status="incomplete"))

    def _parser(self) -> Parser:
        return asked_of(self.job).offer.parser(self.formats(), streams=True)
