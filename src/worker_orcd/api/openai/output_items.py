"""The items of an output (messages, reasoning and tool calls), parsed while the job generates."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from worker_orcd.api.openai.response_bodies import text_of
from worker_orcd.jobs.events import End, Error, Event, Token
from worker_orcd.jobs.job import Job
from worker_orcd.sampling import Logprobs
from worker_orcd.tool_calls.call import Arguments, Call, CallBegun, CallEnded, Part, Reasoning, Text, called
from worker_orcd.tool_calls.parser import Parser

ItemKind = Literal["message", "reasoning", "function_call"]


@dataclass(slots=True)
class OutputItem:
    """One item. A call whose status is not `completed` may be malformed, and its arguments lack the closing brace.

    Attributes:
        kind: the item's kind.
        place: the item's index in the output.
        name: the name of the called tool.
        pieces: the item's text, or the arguments of a call.
        logprobs: log probabilities of a message's tokens, if the job reports them.
        status: `in_progress` while the item may grow.
    """

    kind: ItemKind
    place: int
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    status: Literal["in_progress", "completed", "incomplete"] = "in_progress"

    @property
    def text(self) -> str:
        """The text so far, or the arguments of a call."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Added:
    """A new item begins."""

    item: OutputItem


@dataclass(frozen=True, slots=True)
class Grown:
    """An item has more text."""

    item: OutputItem
    text: str
    logprobs: list[Logprobs]


@dataclass(frozen=True, slots=True)
class Done:
    """An item is complete. An incomplete call never gets this change."""

    item: OutputItem


Change = Added | Grown | Done
_KINDS: dict[type[Part], ItemKind] = {Text: "message", Reasoning: "reasoning"}


class Output:
    """The items of one job's output. They depend only on the job's events, so every reader gets the same items."""

    def __init__(self, parser: Callable[[], Parser], *, never_empty: bool = False) -> None:
        """Begin an empty output.

        Args:
            parser: makes the parser. Called when the job has tokens.
            never_empty: whether an output without text has an empty message.
        """
        self.items: list[OutputItem] = []
        self._make_parser = parser
        self._never_empty = never_empty
        self._parser: Parser | None = None
        self._logprobs: list[Logprobs] = []
        """Log probabilities of tokens whose text the parser holds back."""

    @property
    def calls(self) -> int:
        """Number of complete calls so far."""
        return sum(item.kind == "function_call" and item.status == "completed" for item in self.items)

    def take(self, event: Event) -> Iterator[Change]:
        """The changes that one event of the job makes."""
        self._parser = parser = self._parser or self._make_parser()
        match event:
            case Token(t=text, logprobs=logprobs):
                self._logprobs += [logprobs] if logprobs else []
                yield from self._grow(parser.feed(text))
            case End(stop_reason=reason):
                yield from self._grow(parser.finish())
                if self._never_empty and not self.items:
                    yield from self._begin("message")
                yield from self._end("incomplete" if reason == "length" else "completed")
            case Error():
                yield from self._grow(parser.abandon())
                if (item := self._open()) is not None:
                    item.status = "incomplete"

    def take_all(self, job: Job) -> None:
        """Apply all events of a job that has ended."""
        scored = job.request.logprobs is not None
        tokens = [event for event in job.events if isinstance(event, Token)] if scored else []
        for event in (*(tokens or [Token(text_of(job), 0)]), job.terminal):
            for _ in self.take(event) if event is not None else ():
                pass

    def _open(self) -> OutputItem | None:
        """The item that may grow."""
        return self.items[-1] if self.items and self.items[-1].status == "in_progress" else None

    def _grow(self, parts: list[Part]) -> Iterator[Change]:
        for part in parts:
            match part:
                case Call():
                    yield from self._grow(called(part))
                case CallBegun(name):
                    yield from self._begin("function_call", name)
                case CallEnded():
                    self.items[-1].status = "completed"
                    yield Done(self.items[-1])
                case Arguments(text):
                    yield self._more(self.items[-1], text)
                case Text(text) | Reasoning(text):
                    item = self._open()
                    if item is None or item.kind != _KINDS[type(part)]:
                        yield from self._begin(_KINDS[type(part)])
                    yield self._more(self.items[-1], text)

    def _begin(self, kind: ItemKind, name: str = "") -> Iterator[Change]:
        yield from self._end("completed")
        item = OutputItem(kind, len(self.items), name)
        self.items.append(item)
        yield Added(item)

    def _more(self, item: OutputItem, text: str) -> Grown:
        logprobs, self._logprobs = self._logprobs if item.kind == "message" else [], []
        item.pieces.append(text)
        item.logprobs += logprobs
        return Grown(item, text, logprobs)

    def _end(self, status: Literal["completed", "incomplete"]) -> Iterator[Change]:
        """End the item that may grow."""
        item = self._open()
        if item is None:
            return
        if item.kind == "function_call":
            item.status = "incomplete"
            return
        if self._logprobs and item.kind == "message":
            yield self._more(item, "")
        item.status = status
        yield Done(item)


def call_id(job: Job, item: OutputItem) -> str:
    """The id of a call: nine letters and digits, as Mistral's templates demand. Always the same for the same call."""
    return hashlib.blake2b(f"{job.incarnation} {item.place}".encode(), digest_size=8).hexdigest()[:9]
