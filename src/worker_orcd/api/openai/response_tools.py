"""Tools in a response's request. Unlike chat completions, a tool's function has no enclosing object."""

from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict

from worker_orcd.api.openai.tools import Function, NamedFunction, Offer
from worker_orcd.jobs.request import Body


class FunctionTool(Function):
    """One tool: a function."""

    type: Literal["function"] = "function"


class ChosenTool(NamedFunction):
    """The tool that must be called."""

    type: Literal["function"] = "function"


class AllowedTools(Body):
    """The tools that may be called, a subset of `tools`."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenTool]


ResponseToolChoice = Literal["none", "auto", "required"] | AllowedTools | ChosenTool


def offer_of(tools: Sequence[FunctionTool], choice: ResponseToolChoice | None, *, parallel: bool) -> Offer:
    """The offer of a request. Only the tools that may be called are in the prompt.

    Raises:
        JobError: `INVALID_REQUEST`: two tools have the same name, or the choice names an unknown tool.
    """
    if not isinstance(choice, AllowedTools):
        return Offer.of(tools, choice, parallel=parallel)
    names = {one.name for one in choice.tools}
    return Offer.of([tool for tool in tools if tool.name in names], choice.mode, parallel=parallel)
