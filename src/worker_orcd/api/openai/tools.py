"""Tools that a request offers to the model, and the effect of its `tool_choice` on the output."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from worker_orcd.jobs.constraint import Constraint
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body
from worker_orcd.tool_calls.formats import Marks, ToolFormat, formats_of
from worker_orcd.tool_calls.harmony import HarmonyParser
from worker_orcd.tool_calls.offer import ANY_ARGUMENTS, Offered, OfferedFunction, call_schema
from worker_orcd.tool_calls.parser import OutputParser, Parser

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]


class Function(Body):
    """A function that the model may call."""

    model_config = ConfigDict(extra="ignore")

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="a JSON Schema of an object")
    strict: bool | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The JSON Schema of its arguments, which are an object whatever `parameters` leaves open.

        Raises:
            JobError: `INVALID_REQUEST`: by `parameters` they are none.
        """
        kind = (self.parameters or {}).get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            raise invalid(f"tools: the parameters of {self.name} must be a JSON Schema of an object", "tools")
        return {**(self.parameters or {}), **ANY_ARGUMENTS}


class Tool(Body):
    """One tool: a function."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    model_config = ConfigDict(extra="ignore")

    name: str


class NamedTool(Body):
    """The tool that must be called."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request.

    Attributes:
        functions: the functions that the model may call.
        forced: the functions of which one must be called; empty: the model decides.
        parallel: whether one output may have several calls.
    """

    functions: tuple[Function, ...] = ()
    forced: tuple[Function, ...] = ()
    parallel: bool = True

    @classmethod
    def of(
        cls,
        functions: Sequence[Function],
        choice: Literal["none", "auto", "required"] | NamedFunction | None,
        *,
        parallel: bool,
    ) -> "Offer":
        """The offer of a request.

        Raises:
            JobError: `INVALID_REQUEST`: two tools have the same name, or the choice names an unknown tool.
        """
        functions = tuple(functions)
        names = [function.name for function in functions]
        if len(set(names)) < len(names):
            raise invalid("tools: two functions have the same name", "tools")
        if choice == "none":
            return cls()
        if choice is None or choice == "auto":
            return cls(functions, (), parallel)
        if isinstance(choice, NamedFunction):
            forced = tuple(one for one in functions if one.name == choice.name)
        else:
            forced = functions
        if not forced:
            raise invalid("tool_choice names a tool that is not in tools", "tool_choice")
        return cls(functions, forced, parallel)

    @property
    def marks(self) -> Marks:
        """The marks for which the output is parsed."""
        return "calls" if self.functions else "reasoning"

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The tools in the format of chat templates."""
        return [
            {"type": "function", "function": function.model_dump(include=_SHOWN, exclude_none=True)}
            for function in self.functions
        ]

    def constraint(self, answer: Constraint | None = None) -> Constraint | None:
        """The output's constraint; None: the output is free.

        A forced call consists of the arguments, or of name and arguments if several functions may be called. Otherwise
        calls have the arguments that strict functions demand; other output is free text, or an answer with a schema.

        Args:
            answer: the constraint of an output without calls: a JSON Schema. It does not concern a forced call.

        Raises:
            JobError: `INVALID_REQUEST`: the schemas are out of bounds, or not of objects.
        """
        if not self.forced:
            return self._optional_calls(answer)
        lenient = not all(function.strict for function in self.forced)
        schemas = [function.arguments for function in self.forced]
        if len(schemas) == 1:
            return Constraint.json_schema(schemas[0], "tools", lenient=lenient)
        one_of = [
            call_schema(function.name, schema, f"#/anyOf/{place}")
            for place, (function, schema) in enumerate(zip(self.forced, schemas, strict=True))
        ]
        return Constraint.json_schema({"anyOf": one_of}, "tools", lenient=lenient)

    def _optional_calls(self, answer: Constraint | None) -> Constraint | None:
        if not self.functions or (answer is None and not any(one.strict for one in self.functions)):
            return answer
        offered = Offered(
            tuple(
                OfferedFunction(one.name, one.arguments if one.strict else None, bool(one.strict))
                for one in self.functions
            ),
            self.parallel,
            None if answer is None else json.loads(answer.text),
            answer is not None and answer.lenient,
        )
        return Constraint.tools(offered, "tools")

    def parser(self, formats: Collection[ToolFormat], *, streams: bool) -> Parser:
        """A parser of one output.

        Args:
            formats: the model's formats; empty: unknown.
            streams: return calls in parts, while they are generated.
        """
        names = frozenset(function.name for function in self.functions)
        if "harmony" in formats and not self.forced:
            return HarmonyParser(names, parallel=self.parallel, streams=streams)
        only = self.forced[0].name if len(self.forced) == 1 else None
        return OutputParser(
            names, parallel=self.parallel, only=only, formats=formats_of(formats), streams=streams
        )


_SHOWN = {"name", "description", "parameters"}
