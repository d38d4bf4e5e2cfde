"""Makes text safe for log events: bounded, on one line, without control characters.

Ids, paths and messages come from clients. Whatever they contain, a sentence is one line of at most `SENTENCE_LIMIT`
characters, and cannot colour a terminal, move its cursor or reorder its text.
"""

import hashlib
import traceback
from collections.abc import Mapping
from functools import lru_cache
from string import Formatter

from worker_orcd.printable import printable

SENTENCE_LIMIT = 100
"""The most characters of a sentence (M0-W-1900)."""

FIELD_LIMIT = 1024
"""The most characters of a field. Ids have at most 256."""

_SHORTENED_AT_THE_END = frozenset({"message", "why"})
"""Prose is shortened at its end, ids and paths in the middle, because they differ at both ends."""


def prompt_digest(text: str) -> tuple[int, str]:
    """Return the facts about a prompt for log events: its length in characters and its SHA-256 in hex."""
    return len(text), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def shorten(text: str, limit: int, *, at_end: bool = False) -> str:
    """Shorten `text` to at most `limit` characters, with "…" for the missing part."""
    if len(text) <= limit:
        return text
    if limit <= 1:
        return "…"[:limit]
    tail = 0 if at_end else (limit - 1) // 2
    return text[: limit - 1 - tail] + "…" + text[len(text) - tail :]


def fill(template: str, values: Mapping[str, object], limit: int = SENTENCE_LIMIT) -> str:
    """Insert `values` into `template`. Shortens the longest values until the sentence fits `limit`.

    A template names each field at most once and is itself far shorter than the limit.
    """
    literals, names = _parsed(template)
    texts = {name: _said(values[name], limit) for name in names}
    room = limit - literals
    if sum(map(len, texts.values())) > room:
        # Shortest first: longer values get the space that shorter ones do not need.
        for done, name in enumerate(sorted(texts, key=lambda name: len(texts[name]))):
            share = max(0, room) // (len(texts) - done)
            texts[name] = shorten(texts[name], share, at_end=name in _SHORTENED_AT_THE_END)
            room -= len(texts[name])
    return template.format_map(texts)


def frames(exception: BaseException) -> str:
    """Format where `exception` and its causes were raised, oldest first, without their messages."""
    seen: list[str] = []
    current: BaseException | None = exception
    while current is not None and len(seen) < 5:
        stack = "".join(traceback.format_tb(current.__traceback__)[-8:])
        seen.append(f"{stack}{type(current).__qualname__}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nthen\n".join(reversed(seen))


@lru_cache(maxsize=128)
def _parsed(template: str) -> tuple[int, tuple[str, ...]]:
    parts = list(Formatter().parse(template))
    return sum(len(literal) for literal, *_ in parts), tuple(name for _, name, *_ in parts if name)


def _said(value: object, limit: int) -> str:
    text = f"{value:.0f}" if isinstance(value, float) else str(value)
    # Also bounded before escaping, so that a huge message costs no more than a long one.
    return printable(shorten(text, 4 * limit))
