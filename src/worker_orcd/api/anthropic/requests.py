"""Requests of Anthropic's API, and the job that is made of each.

As on OpenAI's API, fields that would change the answer and are not supported are refused by name, and those that change
nothing here (`metadata`, `service_tier`, `cache_control` …) are taken and ignored.
"""

import json
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.conversation import ChatMessage, ContentPart, conversation
from worker_orcd.api.openai.conversation_end import with_end
from worker_orcd.api.openai.requests import Generation, OpenAIJob
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import MAX_STOP_CHARS, MAX_STOP_STRINGS, Body

_REFUSED: unsupported.Fields = unsupported.ANY | {
    "tools": ([],),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "thinking": ({"type": "disabled"},),
    "mcp_servers": ([],),
    "container": (),
    "output_config": ({},),
    "output_format": (),
    "context_management": ({},),
    "logprobs": (False,),
}
NAMES = {"prompt": "messages", "stop": "stop_sequences"}
"""What a request calls a job's fields, where the names differ."""


class InputMessage(Body):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant"]
    content: str | list[ContentPart]


class Conversation(Body):
    """What a message is made of: all that `POST /v1/messages/count_tokens` reads."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, description="as in `GET /v1/models`")
    messages: list[InputMessage] = Field(
        min_length=1, description="a last one of the assistant's is continued, as Anthropic's API has it"
    )
    system: str | list[ContentPart] | None = None

    @property
    def prompt(self) -> str:
        """The conversation as a prompt. An assistant's last message is left open.

        Raises:
            JobError: `INVALID_REQUEST`, a part of it is no text.
        """
        said = [ChatMessage(role="system", content=self.system)] if self.system else []
        said += [ChatMessage(role=message.role, content=message.content) for message in self.messages]
        prompt = conversation(said, "messages")
        return with_end(prompt, "open") if self.messages[-1].role == "assistant" else prompt

    @classmethod
    def refuse_unsupported(cls, given: dict[str, Any]) -> None:
        """Refuse what cannot be kept by its name, before types are checked.

        Raises:
            JobError: `INVALID_REQUEST` naming the field at fault.
        """
        unsupported.refuse_unsupported(given, _REFUSED)
        unsupported.refuse_unsupported_items(given.get("messages"), "messages")
        unsupported.refuse_unsupported_items([{"content": given.get("system")}], "system")


class CountRequest(Conversation):
    """The body of `POST /v1/messages/count_tokens`."""

    @classmethod
    def parse(cls, raw: bytes) -> "CountRequest":
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the field at fault.
        """
        try:
            given = json.loads(raw)
        except (ValueError, RecursionError):
            given = None  # Refused below.
        if isinstance(given, dict):
            cls.refuse_unsupported(given)
        return super().parse(raw)


class MessagesRequest(Generation, Conversation):
    """The body of `POST /v1/messages`."""

    refused: ClassVar = _REFUSED

    max_tokens: int = Field(ge=1, description="cut to what fits beside the prompt")
    stop_sequences: list[str] | None = Field(default=None, max_length=MAX_STOP_STRINGS)

    @classmethod
    def refuse(cls, given: dict[str, Any]) -> None:
        """Refuse also messages with what is no text.

        Raises:
            JobError: `INVALID_REQUEST` naming the field at fault.
        """
        cls.refuse_unsupported(given)

    def wanted(self, name: str) -> OpenAIJob:
        """Its job."""
        stop = tuple(text for text in self.stop_sequences or () if text)
        if any(len(text) > MAX_STOP_CHARS for text in stop):
            raise invalid(f"a stop sequence may have at most {MAX_STOP_CHARS} characters", "stop_sequences")
        return self.job(
            name, None, prompt=self.prompt, template="messages", max_tokens=self.max_tokens, stop=stop
        )
