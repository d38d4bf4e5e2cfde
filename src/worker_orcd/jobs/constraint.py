"""Constraints of a job's output: a JSON Schema, a grammar or a regular expression."""

import json
import re
from dataclasses import dataclass
from typing import Literal, Self

from worker_orcd.jobs.errors import invalid
from worker_orcd.tool_calls.offer import MAX_DEPTH, Offered

MAX_CHARS = 131_072
"""The most characters of a constraint's text."""

Schema = dict[str, object] | bool


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint within its bounds. The engine checks whether it can be enforced.

    Attributes:
        kind: what `text` is: a JSON Schema, a grammar in GBNF or Lark, a regular expression for the whole output, or
            the tools that may be called.
        text: the schema, grammar, expression or tools.
        lenient: ignore keywords of a JSON Schema that cannot be enforced, instead of refusing them.
    """

    kind: Literal["json_schema", "gbnf", "lark", "regex", "tools"]
    text: str
    lenient: bool = False

    @classmethod
    def json_schema(cls, schema: Schema, param: str, *, lenient: bool = False) -> Self:
        """A JSON Schema from the request field `param`.

        Raises:
            JobError: `INVALID_REQUEST`: the schema is too deep or too long.
        """
        depth = 0
        level: list[object] = [schema]
        while level := [inner for one in level for inner in _within(one)]:
            depth += 1
            if depth > MAX_DEPTH:
                raise invalid(f"{param} is nested deeper than {MAX_DEPTH} levels", param)
        return cls("json_schema", _bounded(json.dumps(schema, ensure_ascii=False), param), lenient)

    @classmethod
    def tools(cls, offered: Offered, param: str) -> Self:
        """Calls of tools, or another output, from the request field `param`.

        Raises:
            JobError: `INVALID_REQUEST`: a schema is too deep, or all are too long.
        """
        for function in offered.functions:
            cls.json_schema(function.parameters or {}, param)
        return cls("tools", _bounded(offered.text, param))

    @classmethod
    def json_text(cls, text: str, param: str) -> Self:
        """A JSON Schema as text.

        Raises:
            JobError: `INVALID_REQUEST`: the text is not a JSON Schema, too deep or too long.
        """
        try:
            schema = json.loads(_bounded(text, param))
        except (ValueError, RecursionError):
            raise invalid(f"{param} is not valid JSON", param) from None
        if not isinstance(schema, dict | bool):
            raise invalid(f"{param} must be a JSON Schema", param)
        return cls.json_schema(schema, param)

    @classmethod
    def grammar(cls, text: str, param: str) -> Self:
        """A grammar in GBNF.

        Raises:
            JobError: `INVALID_REQUEST`: the text is too long.
        """
        return cls("gbnf", _bounded(text, param))

    @classmethod
    def regex(cls, text: str, param: str) -> Self:
        """A regular expression for the whole output.

        Raises:
            JobError: `INVALID_REQUEST`: the text is too long.
        """
        return cls("regex", _bounded(text, param))

    @classmethod
    def choice(cls, texts: list[str], param: str) -> Self:
        """One of these texts.

        Raises:
            JobError: `INVALID_REQUEST`: the texts are too long.
        """
        return cls.regex("|".join(f"({re.escape(text)})" for text in texts), param)


def _within(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _bounded(text: str, param: str) -> str:
    if len(text) > MAX_CHARS:
        raise invalid(f"{param} has {len(text)} characters, at most {MAX_CHARS} are allowed", param)
    return text
