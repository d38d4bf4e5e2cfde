"""Compares a program's output with a page: the same words and keys; numbers, times and texts may differ."""

import json
import re
from collections.abc import Iterator
from typing import Any

_NUMBER = re.compile(r"\b[0-9a-f]{8,}\b|\d+(?:\.\d+)?")
"""Also a random number within an id."""
_WORDS = frozenset({"code", "message", "object", "phase", "reason", "state", "status"})
"""Fields whose values are words of the interface."""


def shape(value: Any, name: str = "") -> Any:
    """A JSON value with its texts and numbers taken out."""
    match value:
        case dict():
            return {key: shape(value[key], key) for key in sorted(value)}
        case list():
            return [shape(item) for item in value[:1]]
        case str():
            return value if name in _WORDS else "text"
        case bool() | None:
            return str(value)
        case _:
            return "number"


def is_shown(said: str, shown: str) -> bool:
    """Whether a program's output contains what a page shows: as JSON, or line by line; `…` stands for omitted text."""
    wanted = _parsed(shown)
    if wanted is not None:
        return any(shape(wanted) == shape(found) for found in _json_in(said))
    lines = _lines(said)
    last = lines[-1:]
    rest = iter(lines)
    wanted_lines = _lines(shown)
    in_order = all(line == "…" or line in rest for line in wanted_lines)
    return in_order and (wanted_lines[-1:] in ([], ["…"]) or wanted_lines[-1:] == last)


def _json_in(said: str) -> Iterator[Any]:
    """The whole text, or each line that is JSON, also after a status or a name."""
    for text in (said, *(line[line.find("{") :] for line in said.splitlines() if "{" in line)):
        found = _parsed(text)
        if found is not None:
            yield found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _lines(text: str) -> list[str]:
    return [_line(line) for line in text.splitlines() if line.strip()]


def _line(line: str) -> str:
    head, brace, rest = line.partition("{")
    found = _parsed(brace + rest)
    if isinstance(found, dict):
        return head + json.dumps(shape(found))
    return " ".join(_NUMBER.sub("0", line).split())
