"""What an output with tools may be: calls of functions, and text or an answer with a schema."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Self

MAX_DEPTH = 64
"""Maximum nesting depth of objects and arrays in a JSON Schema."""
ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
"""The schema of the arguments of a function without one."""


@dataclass(frozen=True, slots=True)
class OfferedFunction:
    """A function that may be called. Its schema counts only if it is strict."""

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Offered:
    """The functions, and what else the output may be.

    Attributes:
        functions: the functions that may be called.
        parallel: whether one output may have several calls.
        answer: the JSON Schema of an output without calls; None: free text, in which calls may stand.
        lenient: ignore keywords of this schema that cannot be enforced.
    """

    functions: tuple[OfferedFunction, ...]
    parallel: bool = True
    answer: dict[str, Any] | bool | None = None
    lenient: bool = False

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def of(cls, text: str) -> Self:
        """From JSON."""
        given = json.loads(text)
        functions = tuple(OfferedFunction(**one) for one in given["functions"])
        return cls(functions, given["parallel"], given["answer"], given["lenient"])


def call_schema(name: str, parameters: Any, place: str, key: str = "arguments") -> dict[str, Any]:
    """A JSON Schema for a call: an object with the name and the arguments.

    Args:
        name: the function's name.
        parameters: the schema of its arguments.
        place: the JSON pointer of the result within the whole schema.
        key: the name of the arguments.
    """
    return {
        "type": "object",
        "properties": {"name": {"const": name}, key: moved(parameters, f"{place}/properties/{key}")},
        "required": ["name", key],
        "additionalProperties": False,
    }


def answer_or_call(offered: Offered) -> dict[str, Any]:
    """A JSON Schema for an answer, or for a call that is a JSON object without marks, as Llama 3 writes it."""
    calls = [
        call_schema(
            one.name,
            one.parameters if one.strict and one.parameters else ANY_ARGUMENTS,
            f"#/anyOf/{place}",
            "parameters",
        )
        for place, one in enumerate(offered.functions)
    ]
    return {"anyOf": [*calls, moved(offered.answer, f"#/anyOf/{len(calls)}")]}


def moved(schema: Any, place: str, depth: int = 0) -> Any:
    """A JSON Schema whose references to itself are adjusted to its place inside another schema."""
    if depth > MAX_DEPTH:
        return schema  # Such a depth is refused later.
    if isinstance(schema, list):
        return [moved(one, place, depth + 1) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: re.sub("^#", lambda _: place, value)
        if name == "$ref" and isinstance(value, str)
        else moved(value, place, depth + 1)
        for name, value in schema.items()
    }
