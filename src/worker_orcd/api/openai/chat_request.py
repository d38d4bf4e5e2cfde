"""Requests of chat completions."""

from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.conversation import ChatMessage, conversation
from worker_orcd.api.openai.conversation_end import ConversationEnd
from worker_orcd.api.openai.requests import Completions
from worker_orcd.api.openai.tools import MAX_TOOLS, NamedTool, Offer, Tool, ToolChoice
from worker_orcd.jobs.constraint import Constraint
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import JobRequest
from worker_orcd.sampling import MAX_LOGPROBS


class ChatRequest(Completions, ConversationEnd):
    """The body of `POST /v1/chat/completions`."""

    refused: ClassVar = unsupported.CHAT

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(
        default=None, description="`false`: at most one call in a response"
    )
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = Field(
        default=None, description="log probabilities of the tokens, from the raw logits"
    )
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="number of most likely tokens with each token"
    )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        wanted = super().parse(raw)
        if wanted.top_logprobs and not wanted.logprobs:
            raise invalid("top_logprobs can only be given with logprobs", "top_logprobs")
        _ = wanted.offer  # Raises if the tools are invalid.
        return wanted

    @cached_property
    def offer(self) -> Offer:
        """The tools that may be called, and whether one must be.

        Raises:
            JobError: `INVALID_REQUEST`: the choice names an unknown tool, or a schema is out of bounds.
        """
        functions = [tool.function for tool in self.tools or ()]
        choice = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        return Offer.of(functions, choice, parallel=self.parallel_tool_calls is not False)

    @property
    def constraint(self) -> tuple[str, Constraint] | None:
        """The field that constrains the output, and the constraint. `response_format` constrains only text, not calls;
        the other fields constrain the whole output.

        Raises:
            JobError: `INVALID_REQUEST`: there are two constraints.
        """
        given = super().constraint
        if given is not None and given[0] != "response_format":
            if self.offer.forced:
                raise invalid(f"{given[0]} cannot be combined with a forced tool call", given[0])
            return given
        constraint = self.offer.constraint(given and given[1])
        if constraint is None:
            return None
        return "tools" if given is None or self.offer.forced else given[0], constraint

    @property
    def wanted_logprobs(self) -> int | None:
        """From `logprobs` and `top_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @classmethod
    def refuse(cls, given: dict[str, Any]) -> None:
        """Refuse unsupported fields, and messages with content other than text.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        super().refuse(given)
        unsupported.refuse_unsupported_tools(given)
        unsupported.refuse_unsupported_items(given.get("messages"), "messages")

    @property
    def names(self) -> dict[str, str]:
        """This API's names of a job's fields, where they differ."""
        most = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return {"prompt": "messages", "max_tokens": most, **self.constraint_names}

    def wanted(self, name: str) -> list[JobRequest]:
        """Its jobs."""
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        prompt = self.ended(conversation(self.messages, "messages", self.offer.shown))
        return self.jobs(name, [prompt], template="messages", max_tokens=most, marks=self.offer.marks)
