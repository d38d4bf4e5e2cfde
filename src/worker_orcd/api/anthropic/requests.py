"""Requests of Anthropic's API, and the jobs made from them.

As on OpenAI's API, unsupported fields that would change the output are refused by name, and fields without effect here
(`metadata`, `service_tier`, `cache_control` …) are ignored.
"""

from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field

from worker_orcd.api.anthropic.content_blocks import BLOCKS, InputMessage, ToolUse, messages_of
from worker_orcd.api.anthropic.tools import Tool, ToolChoice, offer_of
from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.conversation import ChatMessage, ContentPart, conversation
from worker_orcd.api.openai.conversation_end import with_end
from worker_orcd.api.openai.requests import Generation, OpenAIJob
from worker_orcd.api.openai.tools import MAX_TOOLS, Offer
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.jobs.request import MAX_STOP_CHARS, MAX_STOP_STRINGS, Body

_REFUSED: unsupported.Fields = unsupported.ANY | {
    "thinking": ({"type": "disabled"}, {"type": "adaptive"}),
    "mcp_servers": ([],),
    "container": (),
    "output_config": ({},),
    "output_format": (),
    "context_management": ({},),
    "logprobs": (False,),
}
NAMES = {"prompt": "messages", "stop": "stop_sequences", "json_schema": "tools"}
"""This API's names of a job's fields, where they differ."""


class Conversation(Body):
    """The conversation in a request: all fields that `POST /v1/messages/count_tokens` reads."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, description="as in `GET /v1/models`")
    messages: list[InputMessage] = Field(
        min_length=1, description="a last message of the assistant is continued, as in Anthropic's API"
    )
    system: str | list[ContentPart] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None

    @cached_property
    def offer(self) -> Offer:
        """The tools that may be called, and whether one must be.

        Raises:
            JobError: `INVALID_REQUEST`: the choice names an unknown tool.
        """
        return offer_of(self.tools or (), self.tool_choice)

    @property
    def prompt(self) -> str:
        """The conversation as a prompt. The output continues a last message of the assistant.

        Raises:
            JobError: `INVALID_REQUEST`: a part is not text, or the results of the last calls are missing.
        """
        said = [ChatMessage(role="system", content=self.system)] if self.system else []
        said += messages_of(self.messages)
        prompt = conversation(said, "messages", self.offer.shown)
        last = self.messages[-1]
        if last.role != "assistant":
            return prompt
        if any(isinstance(block, ToolUse) for block in last.content):
            raise invalid("the last tool_use blocks have no tool_result blocks after them", "messages")
        return with_end(prompt, "open")

    @classmethod
    def refuse_unsupported(cls, given: dict[str, Any]) -> None:
        """Refuse unsupported fields by name, before types are checked.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        if given.get("thread") is not None:
            raise _no_threads()
        unsupported.refuse_unsupported(given, _REFUSED)
        unsupported.refuse_unsupported_items(given.get("messages"), "messages", parts=BLOCKS)
        unsupported.refuse_unsupported_items([{"content": given.get("system")}], "system")


class CountRequest(Conversation):
    """The body of `POST /v1/messages/count_tokens`."""

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        if (given := unsupported.object_in(raw)) is not None:
            cls.refuse_unsupported(given)
        return super().parse(raw)


class MessagesRequest(Generation, Conversation):
    """The body of `POST /v1/messages`."""

    refused: ClassVar = _REFUSED

    max_tokens: int = Field(ge=1, description="reduced to what fits into the context after the prompt")
    stop_sequences: list[str] | None = Field(default=None, max_length=MAX_STOP_STRINGS)

    @classmethod
    def refuse(cls, given: dict[str, Any]) -> None:
        """Refuse unsupported fields, and messages with content other than text.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        cls.refuse_unsupported(given)

    @property
    def streams_calls(self) -> bool:
        """Whether a stream sends the input of calls in parts, while it is generated. Not the default, because
        Anthropic's packages treat any part as a whole input."""
        return any(tool.eager_input_streaming for tool in self.tools or ())

    def wanted(self, name: str) -> OpenAIJob:
        """Its job."""
        stop = tuple(text for text in self.stop_sequences or () if text)
        if any(len(text) > MAX_STOP_CHARS for text in stop):
            raise invalid(f"a stop sequence may have at most {MAX_STOP_CHARS} characters", "stop_sequences")
        return self.job(
            name,
            None,
            prompt=self.prompt,
            template="messages",
            max_tokens=self.max_tokens,
            stop=stop,
            constrained=self.offer.constraint(),
            marks=self.offer.marks,
        )


def _no_threads() -> JobError:
    """The refusal of `thread`. Anthropic's packages recognize it, and then send the whole conversation each time."""
    reason = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return JobError(
        ErrorCode.INVALID_REQUEST, "thread is not supported", param="thread", details={"details": reason}
    )
