"""Makes text from outside safe to show.

Names in model files, messages of remote workers, ids of other clients and a model's output may contain escape
sequences, other control characters and marks that reorder text. A terminal must show these and never interpret them.
Only this module defines which characters are safe; all code that stores names or prints text uses it.
"""

from typing import TypeVar

T = TypeVar("T")

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"]
_REORDERING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Bidirectional embeddings, overrides and isolates. Ordinary right-to-left text does not need them."""
_SURROGATES = range(0xD800, 0xE000)
_OBEYED = dict.fromkeys((*_CONTROLS, *_REORDERING, *_SURROGATES), _REPLACEMENT)


def printable(text: str) -> str:
    """Return `text` as one line of printable characters. All other characters are escaped, such as `\\x1b`.

    For names and messages. Escapes controls, escape sequences, line separators, reordering marks and surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_values(value: T) -> T:
    """Return a JSON value in which all strings, keys included, are `printable`."""
    if isinstance(value, str):
        return printable(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {printable_values(name): printable_values(one) for name, one in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [printable_values(one) for one in value]  # type: ignore[return-value]
    return value


def readable(text: str) -> str:
    """Return `text` with line feeds and tabs, and with U+FFFD for all other characters that a terminal would interpret.

    For a model's output on a terminal. Carriage returns are replaced, too, because they would overwrite the line.
    """
    return text.replace("\r\n", "\n").translate(_OBEYED)
