"""Tools in the format of Anthropic's API."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from worker_orcd.api.openai.tools import Function, FunctionName, NamedFunction, Offer
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body


class Tool(Body):
    """One tool. The client runs it."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="a JSON Schema of an object")
    strict: bool | None = None
    eager_input_streaming: bool | None = Field(
        default=None, description="stream the input of calls while it is generated"
    )

    @property
    def function(self) -> Function:
        """The tool's function."""
        return Function(
            name=self.name,
            description=self.description,
            parameters=self.input_schema,
            strict=self.strict,
        )


class ToolChoice(Body):
    """Whether a tool must be called, and which."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, description="with the type `tool`")
    disable_parallel_tool_use: bool | None = Field(
        default=None, description="`true`: at most one call in a response"
    )


def offer_of(tools: Sequence[Tool], choice: ToolChoice | None) -> Offer:
    """The offer of a request.

    Raises:
        JobError: `INVALID_REQUEST`: two tools have the same name, or the choice names an unknown tool.
    """
    functions = [tool.function for tool in tools]
    parallel = choice is None or not choice.disable_parallel_tool_use
    match choice:
        case None | ToolChoice(type="auto"):
            return Offer.of(functions, "auto", parallel=parallel)
        case ToolChoice(type="none"):
            return Offer.of(functions, "none", parallel=parallel)
        case ToolChoice(type="any"):
            return Offer.of(functions, "required", parallel=parallel)
        case ToolChoice(name=str(name)):
            return Offer.of(functions, NamedFunction(name=name), parallel=parallel)
    raise invalid("tool_choice.name is required", "tool_choice")
