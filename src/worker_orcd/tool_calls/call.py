"""The parts of a model's output: text, reasoning and tool calls."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The model's reasoning, which is not part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """One complete call. `arguments` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of this tool begins. `Arguments` follow, then `CallEnded`, unless the call turns out to be malformed or
    the output is cut off."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next part of the current call's arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The current call is complete: its joined arguments are a JSON object."""


Part = Text | Reasoning | Call | CallBegun | Arguments | CallEnded


def called(call: Call) -> list[Part]:
    """A complete call as the parts of a stream."""
    return [CallBegun(call.name), Arguments(call.arguments), CallEnded()]


_decoder = json.JSONDecoder(strict=False)  # Models write line breaks into strings.


def json_values(text: str) -> list[object] | None:
    """The JSON values in a text that consists only of them, white space and semicolons; None for another text."""
    values: list[object] = []
    place = 0
    while place < len(text):
        if text[place] in " \t\r\n;":
            place += 1
            continue
        try:
            value, place = _decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        values.append(value)
    return values


def call_of(value: object) -> Call | None:
    """The call that a JSON object describes: `name`, and `arguments` or `parameters`."""
    if not isinstance(value, dict):
        return None
    if isinstance(inner := value.get("function"), dict):
        value = inner
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    try:
        name.encode()
        return Call(name, _written(arguments))
    except ValueError:
        return None


def json_calls(body: str) -> list[Call] | None:
    """Calls written as JSON objects or as a list of them; None for another text."""
    values = json_values(body)
    return None if values is None else all_or_none(map(call_of, _flat(values)))


def all_or_none(calls: Iterable[Call | None]) -> list[Call] | None:
    """These calls; None if there are none or one is incomplete."""
    found = list(calls)
    return [call for call in found if call] if found and all(found) else None


def _written(arguments: dict[str, object]) -> str:
    """JSON that every client can read: single surrogates stay escaped.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or _is_unicode(text) else json.dumps(arguments)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _flat(values: list[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_CONTROL = re.compile(r"[\x00-\x1f]")


class JsonScanner:
    """Scans a JSON object or list in a growing text, up to its last bracket."""

    def __init__(self, start: int) -> None:
        """`start`: the position in the text where the value begins."""
        self.complete = False
        self._in_string = False
        self._place = start
        self._depth = 0

    @property
    def end(self) -> int:
        """The position after the scanned part."""
        return self._place

    def scan(self, text: str) -> str:
        """Continue to the end of the text or of the value.

        Returns:
            The newly scanned part without the last bracket. Control characters in strings are escaped.
        """
        pieces: list[str] = []
        while not self.complete and self._place < len(text):
            start, inside = self._place, self._in_string
            found = (_IN_STRING if inside else _OUTSIDE).search(text, start)
            if found is None:
                self._place = len(text)
            else:
                self._place = min(self._step(found), len(text))
                if found[0] == "\\" and found.end() == len(text):
                    self._place = found.start()  # The escaped character has not arrived yet.
            piece = text[start : self._place - self.complete]
            pieces.append(_CONTROL.sub(_escaped, piece) if inside else piece)
            if found is not None and self._place == found.start():
                break
        return "".join(pieces)

    def _step(self, found: re.Match[str]) -> int:
        match found[0]:
            case '"':
                self._in_string = not self._in_string
            case "\\":
                return found.end() + 1
            case "{" | "[":
                self._depth += 1
            case _:
                self._depth -= 1
                self.complete = self._depth <= 0
        return found.end()


def in_json_string(text: str) -> bool:
    """Whether a JSON string is open at the end of this text."""
    inside, escaped = False, False
    for character in text:
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
    return inside


def _escaped(control: re.Match[str]) -> str:
    return f"\\u{ord(control[0]):04x}"
