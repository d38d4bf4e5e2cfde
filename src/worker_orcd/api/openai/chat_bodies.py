"""Response bodies and chunks of chat completions: text, reasoning and tool calls."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from worker_orcd.api.openai.response_bodies import (
    FINISH_REASONS,
    Completion,
    finish_reason,
    logprobs_content,
    text_of,
)
from worker_orcd.jobs.events import End, Event, Token
from worker_orcd.jobs.job import Job
from worker_orcd.tool_calls.call import Arguments, Call, CallBegun, Part, Reasoning, Text
from worker_orcd.tool_calls.parser import Parser


class ParserFactory(Protocol):
    """Makes a parser for one choice, once the model is loaded."""

    def __call__(self, *, streams: bool) -> Parser:
        """`streams`: return calls in parts."""


@dataclass(frozen=True, slots=True)
class ChatCompletion(Completion):
    """The response bodies of `POST /v1/chat/completions`."""

    parser: ParserFactory = field(kw_only=True)
    parsers: dict[int, Parser] = field(default_factory=dict, kw_only=True)
    """By choice, the parser of a stream."""
    begun: dict[int, int] = field(default_factory=dict, kw_only=True)
    """By choice, the number of calls that have begun in a stream."""

    def chunks(self, place: int, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of one event of one choice."""
        match event:
            case Token(t=text, logprobs=logprobs):
                deltas = list(self._deltas(place, self._parser(place).feed(text)))
                if logprobs and not deltas:
                    deltas = [{}]
                for number, delta in enumerate(deltas):
                    yield self._chunk(place, {"delta": delta}, None, [] if number else [event])
            case End(stop_reason=reason):
                parser = self._parser(place)
                for delta in self._deltas(place, parser.finish()):
                    yield self._chunk(place, {"delta": delta}, None)
                called = parser.calls and reason != "length"
                finish = "tool_calls" if called else FINISH_REASONS[reason]
                yield self._chunk(place, {"delta": {}}, finish)
            case _:
                yield from super(ChatCompletion, self).chunks(place, event)

    def held(self) -> Iterator[dict[str, Any]]:
        """Chunks with held-back text that could have become the mark of a call. An unfinished call is dropped."""
        for place, parser in self.parsers.items():
            for delta in self._deltas(place, parser.abandon()):
                yield self._chunk(place, {"delta": delta}, None)

    def _parser(self, place: int) -> Parser:
        if place not in self.parsers:
            self.parsers[place] = self.parser(streams=True)
        return self.parsers[place]

    def _deltas(self, place: int, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        for part in parts:
            match part:
                case Text(text):
                    yield {"content": text}
                case Reasoning(text):
                    yield {"reasoning_content": text}
                case CallBegun(name):
                    self.begun[place] = self.begun.get(place, 0) + 1
                    yield {"tool_calls": [{"index": self.begun[place] - 1, **_call(name, "")}]}
                case Arguments(text):
                    more = {"function": {"arguments": text}}
                    yield {"tool_calls": [{"index": self.begun[place] - 1, **more}]}
                case _:
                    pass

    def _object(self, chunk: str) -> str:
        return f"chat.completion{chunk}"

    def _whole(self, place: int, job: Job) -> dict[str, Any]:
        parser = self.parser(streams=False)
        parts = [*parser.feed(text_of(job)), *parser.finish()]
        text = "".join(part.text for part in parts if isinstance(part, Text))
        reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
        calls = [_call(part.name, part.arguments) for part in parts if isinstance(part, Call)]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        finish = finish_reason(job)
        return {
            "index": place,
            "message": message,
            "logprobs": self._logprobs(place, job.events),
            "finish_reason": "tool_calls" if calls and finish != "length" else finish,
        }

    def _logprobs(self, place: int, events: Sequence[Event]) -> dict[str, Any] | None:  # noqa: ARG002
        content = logprobs_content(events)
        return {"content": content, "refusal": None} if content else None

    def _opening(self, place: int) -> Iterator[dict[str, Any]]:
        yield self._chunk(place, {"delta": {"role": "assistant", "content": ""}}, None)

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


def _call(name: str, arguments: str) -> dict[str, Any]:
    """A call with a new id: nine letters and digits, as Mistral's templates demand."""
    function = {"name": name, "arguments": arguments}
    return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}
