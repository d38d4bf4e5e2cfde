"""Text from outside made safe to show.

Names in model files, messages of remote workers, ids of other clients and a model's output may hold escape sequences,
other control characters and marks that reorder text. A terminal must show them and never obey them. This module is the
only place that decides what is safe; everything that stores names or prints text uses it.
"""

from typing import TypeVar

T = TypeVar("T")

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"]
_REORDERING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Bidirectional embeddings, overrides and isolates. Right-to-left letters and single marks need none of them."""
_SURROGATES = range(0xD800, 0xE000)
_OBEYED = dict.fromkeys((*_CONTROLS, *_REORDERING, *_SURROGATES), _REPLACEMENT)


def printable(text: str) -> str:
    """Return `text` as one line of printable characters; every other character is escaped, such as `\\x1b`.

    For names and messages. Escapes controls, escape sequences, line separators, reordering marks and surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_values(value: T) -> T:
    """Return a JSON value in which each text, each object's names included, is `printable`."""
    if isinstance(value, str):
        return printable(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {printable_values(name): printable_values(one) for name, one in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [printable_values(one) for one in value]  # type: ignore[return-value]
    return value


def readable(text: str) -> str:
    """Return `text` with its lines and tabs kept and everything else that a terminal would obey shown as U+FFFD.

    For a model's output on a terminal. A carriage return is kept out, too: it would overwrite what stands in its line.
    """
    return text.replace("\r\n", "\n").translate(_OBEYED)
