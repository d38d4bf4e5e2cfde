"""Jobs in Anthropic's format: whole messages, and the events of a stream."""

import json
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from worker_orcd.api.anthropic.requests import NAMES, MessagesRequest
from worker_orcd.api.error_responses import anthropic_error
from worker_orcd.api.openai.output_items import (
    Added,
    Change,
    Done,
    Grown,
    ItemKind,
    Output,
    OutputItem,
    call_id,
)
from worker_orcd.api.openai.response_bodies import failure_of, frame
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.events import End, Error, Event, Started
from worker_orcd.jobs.job import Job
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.worker.streams import JobStream, KeepAlive

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "stop_sequence": "stop_sequence"}
_DELTAS: dict[ItemKind, tuple[str, str]] = {
    "message": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "function_call": ("input_json_delta", "partial_json"),
}
"""By kind of item: the type of its deltas, and the field with their text."""


def usage_of(job: Job) -> dict[str, int]:
    """The API's `usage`. As in Anthropic's API, `input_tokens` does not include cached tokens."""
    prompt_tokens = job.prompt_processed or job.prompt_length or 0
    return {
        "input_tokens": prompt_tokens - job.prompt_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": job.prompt_cached,
        "output_tokens": job.tokens_out,
    }


def failure(job: Job, terminal: Error) -> JobError:
    """The error for a job that did not reach its natural end."""
    return failure_of(terminal, NAMES, usage_of(job))


@dataclass(slots=True)
class MessageEvents:
    """A message and the events of its stream.

    Attributes:
        job: the message's job.
        model: the model's name in the request.
        asked: the request.
        formats: returns the model's formats of tool calls, once it is loaded.
    """

    job: Job
    model: str
    asked: MessagesRequest
    formats: Callable[[], Collection[ToolFormat]]
    _output: Output = field(init=False)

    def __post_init__(self) -> None:
        """Begin with an empty output."""
        self._output = self._new_output(streams=self.asked.streams_calls)

    def message(self) -> dict[str, Any]:
        """The message, once the job has reached its natural end."""
        output = self._new_output(streams=False)
        output.take_all(self.job)
        return self._head([self._block(item) for item in output.items]) | self._end(output.calls)

    def emit(self, event: Event) -> Iterator[bytes]:
        """The events for one event of the job. Only a natural end adds `message_stop`."""
        for change in self._output.take(event):
            yield self._change(change)
        match event:
            case Started():
                message = self._head([]) | {"stop_reason": None, "stop_sequence": None}
                yield _event("message_start", message=message)
            case End():
                yield _event("message_delta", delta=self._end(self._output.calls), usage=usage_of(self.job))
                yield _event("message_stop")
            case Error():
                yield frame(anthropic_error(failure(self.job, event)), "error")

    def _change(self, change: Change) -> bytes:
        item = change.item
        match change:
            case Added():
                return _event("content_block_start", index=item.place, content_block=self._block(item))
            case Grown(text=text):
                kind, name = _DELTAS[item.kind]
                return _event("content_block_delta", index=item.place, delta={"type": kind, name: text})
            case Done():
                return _event("content_block_stop", index=item.place)

    def _block(self, item: OutputItem) -> dict[str, Any]:
        """An item as a content block. The input of an incomplete call is empty."""
        match item.kind:
            case "message":
                return {"type": "text", "text": item.text}
            case "reasoning":
                return {"type": "thinking", "thinking": item.text, "signature": ""}
            case "function_call":
                given = json.loads(item.text) if item.status == "completed" else {}
                return {
                    "type": "tool_use",
                    "id": call_id(self.job, item),
                    "name": item.name,
                    "input": given,
                }

    def _new_output(self, *, streams: bool) -> Output:
        return Output(lambda: self.asked.offer.parser(self.formats(), streams=streams))

    def _head(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.job.job_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "usage": usage_of(self.job),
        }

    def _end(self, calls: int) -> dict[str, str | None]:
        """The reason of the message's end. Which of several stop sequences occurred is not known."""
        terminal = self.job.terminal
        reason = terminal.stop_reason if isinstance(terminal, End) else "stop"
        sequences = [text for text in self.asked.stop_sequences or () if text]
        one = sequences[0] if len(sequences) == 1 else None
        return {
            "stop_reason": "tool_use" if calls and reason != "length" else _STOP_REASONS[reason],
            "stop_sequence": one if reason == "stop_sequence" else None,
        }


async def frames(stream: JobStream, events: MessageEvents, keep_alive: KeepAlive) -> AsyncIterator[bytes]:
    """A message's stream."""
    async for batch in stream.read(keep_alive):
        yield b"".join(data for _, event in batch for data in events.emit(event))


def _event(kind: str, **more: Any) -> bytes:
    return frame({"type": kind, **more}, kind)
