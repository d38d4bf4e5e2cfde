"""Requests for responses, and a response's job."""

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.conversation import ChatMessage, conversation
from worker_orcd.api.openai.input_items import Item, kept_bytes
from worker_orcd.api.openai.output_format import TextOptions
from worker_orcd.api.openai.requests import Generation, OpenAIJob
from worker_orcd.api.openai.response_input import InputItem, InputMessage, item_of, messages_of
from worker_orcd.api.openai.response_tools import FunctionTool, ResponseToolChoice, offer_of
from worker_orcd.api.openai.tools import MAX_TOOLS, Offer
from worker_orcd.jobs.constraint import Constraint
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body
from worker_orcd.sampling import MAX_LOGPROBS

INCLUDE_LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that requests log probabilities."""


class ResponseRequest(Generation):
    """The body of `POST /v1/responses`."""

    refused: ClassVar = unsupported.RESPONSE

    input: str | list[InputItem]
    instructions: str | None = None
    previous_response_id: str | None = Field(
        default=None, description="the response to continue; it must have ended and still be stored"
    )
    max_output_tokens: int | None = Field(default=None, ge=1)
    background: bool | None = None
    store: bool | None = Field(default=None, description="false: cannot be retrieved after its end")
    metadata: dict[str, str] | None = None
    text: TextOptions | None = Field(default=None, description="`format`: the form of the output")
    tools: list[FunctionTool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = Field(
        default=None, description="`false`: at most one call in a response"
    )
    include: list[str] | None = Field(
        default=None, description=f"`{INCLUDE_LOGPROBS}`: log probabilities of tokens, from the raw logits"
    )
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="number of most likely tokens with each token"
    )

    @property
    def wanted_logprobs(self) -> int | None:
        """From `include` and `top_logprobs`."""
        return (self.top_logprobs or 0) if INCLUDE_LOGPROBS in (self.include or ()) else None

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        wanted = super().parse(raw)
        if wanted.background and not wanted.stored:
            raise invalid("a response with background requires store", "store")
        _ = wanted.offer  # Raises if the tools are invalid.
        return wanted

    @classmethod
    def refuse(cls, given: dict[str, Any]) -> None:
        """Refuse unsupported fields, and input other than text.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        super().refuse(given)
        unsupported.refuse_unsupported_tools(given)
        unsupported.refuse_unsupported_items(given.get("input"), "input", unsupported.RESPONSE_ITEMS)

    @property
    def stored(self) -> bool:
        """Whether the response can be retrieved after its end."""
        return self.store is not False

    @cached_property
    def offer(self) -> Offer:
        """The tools that may be called, and whether one must be.

        Raises:
            JobError: `INVALID_REQUEST`: the choice names an unknown tool.
        """
        return offer_of(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls is not False)

    @property
    def shown_choice(self) -> Any:
        """`tool_choice` in the response object."""
        choice = self.tool_choice
        return choice.model_dump() if isinstance(choice, Body) else choice or "auto"

    @property
    def names(self) -> dict[str, str]:
        """This API's names of a job's fields, where they differ."""
        given = self.text and self.text.format
        constraint = "tools" if self.offer.forced or not given else "text.format"
        return {"prompt": "input", "max_tokens": "max_output_tokens", "json_schema": constraint}

    def wanted(self, name: str, earlier: Sequence[Item] = (), *, named_by_client: bool) -> "ResponseJob":
        """The request's job. `earlier`: the items of the response that it continues."""
        given = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        if not given and not self.instructions:
            raise invalid("input must not be empty", "input")
        items = (*earlier, *map(item_of, given))
        said = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        job = self.job(
            name,
            None,
            prompt=conversation([*said, *messages_of(items)], "input", self.offer.shown),
            template="messages",
            max_tokens=self.max_output_tokens,
            constrained=self._constraint(),
            marks=self.offer.marks,
            on_disconnect="continue" if self.background else "cancel",
        )
        return ResponseJob(**dict(job), asked=self, items=items, named_by_client=named_by_client)

    def _constraint(self) -> Constraint | None:
        """The constraint of the output: that of a forced call, or else that of `text`.

        Raises:
            JobError: `INVALID_REQUEST`: a constraint is out of bounds.
        """
        form = None if self.text is None else self.text.constraint()
        return self.offer.constraint(form)

    @property
    def kept_bytes(self) -> int:
        """Memory of the request's strings, tools and text options. JSON values take several times their text's size."""
        metadata = self.metadata or {}
        strings = (self.instructions, *metadata, *metadata.values())
        tools = sum(8 * len(tool.model_dump_json()) for tool in self.tools or ())
        form = 0 if self.text is None else self.text.kept_bytes
        return sum(map(sys.getsizeof, strings)) + tools + form


class ResponseJob(OpenAIJob):
    """A response's job. It keeps the request, which is part of the response object."""

    asked: ResponseRequest
    items: tuple[Item, ...] = ()
    """The input items: those of all responses that it continues, and its own. Kept as long as the text."""
    named_by_client: bool
    """Whether the client chose the id, which may then be used more than once."""

    def without_prompt(self) -> Self:
        """The same request without its raw input. Items and instructions are kept, because the API returns them."""
        kept = {
            "asked": self.asked.model_copy(update={"input": ""}),
            "items": self.items if self.stored else (),
        }
        return super().without_prompt().model_copy(update=kept)

    @property
    def stored(self) -> bool:
        """From `store`."""
        return self.asked.stored

    @property
    def kept_bytes(self) -> int:
        """Memory of the items and the request. Items shared by several responses count for each of them."""
        return kept_bytes(self.items) + self.asked.kept_bytes
