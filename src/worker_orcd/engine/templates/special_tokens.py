"""Finds the vocabulary's special tokens in a rendered conversation."""

import re
from collections.abc import Iterable

import msgspec


class SpecialToken(msgspec.Struct, frozen=True, array_like=True):
    """A token that llama.cpp looks for in a text before it tokenizes the rest.

    `control`: a control token is recognized only where special tokens are parsed; other tokens always are. `lstrip`,
    `rstrip`: the token includes the white space on that side.
    """

    text: str
    control: bool = True
    lstrip: bool = False
    rstrip: bool = False


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a rendered conversation, tokenized by itself. `parsed`: special tokens in it are recognized."""

    text: str
    parsed: bool


_SPACES = " \t\n\v\f\r"
"""White space according to C's `isspace`."""


class SpecialTokens:
    """All special tokens of a vocabulary."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        """Take the special tokens, in any order."""
        self._longest_first = sorted(
            (token for token in tokens if token.text),
            key=lambda token: -len(token.text.encode("utf-8", "replace")),
        )
        control = [token.text for token in self._longest_first if token.control]
        self._control = re.compile(f"(?=({_alternatives(control)}))") if control else None
        self.characters = _one_of_each(control)
        """Every control token contains at least one of these characters."""

    def pieces(self, text: str, of_client: Iterable[int]) -> list[Piece]:
        """Split a text into pieces whose tokens, one after the other, are the text's tokens.

        Args:
            text: a rendered conversation.
            of_client: positions of characters that a client wrote. A control token with such a character is plain text.
        """
        client = frozenset(of_client)
        if not client or not self._forged(text, client):
            return [Piece(text, parsed=True)] if text else []
        return self._partition(text, client)

    def _forged(self, text: str, client: frozenset[int]) -> bool:
        """Whether a control token in the text contains characters that a client wrote."""
        return self._control is not None and any(
            not client.isdisjoint(range(*match.span(1))) for match in self._control.finditer(text)
        )

    def _partition(self, text: str, client: frozenset[int]) -> list[Piece]:
        """Split the text at its special tokens, in llama.cpp's order: the longest token first."""
        fragments: list[tuple[int, int, bool]] = [(0, len(text), False)]
        for token in self._longest_first:
            if token.text not in text:
                continue
            cut: list[tuple[int, int, bool]] = []
            for start, end, special in fragments:
                cut += [(start, end, True)] if special else self._cut(text, start, end, token, client)
            fragments = cut
        return [Piece(text[start:end], parsed=special) for start, end, special in fragments]

    def _cut(
        self, text: str, start: int, end: int, token: SpecialToken, client: frozenset[int]
    ) -> list[tuple[int, int, bool]]:
        """Split a raw fragment at the occurrences of one token."""
        fragments: list[tuple[int, int, bool]] = []
        search = start
        while (found := text.find(token.text, search, end)) >= 0:
            after = found + len(token.text)
            if token.control and not client.isdisjoint(range(found, after)):
                search = found + 1
                continue
            before = text[start:found].rstrip(_SPACES) if token.lstrip else text[start:found]
            if before:
                fragments.append((start, start + len(before), False))
            fragments.append((found, after, True))
            rest = text[after:end]
            start = search = end - len(rest.lstrip(_SPACES)) if token.rstrip else after
        if start < end:
            fragments.append((start, end, False))
        return fragments


def _one_of_each(texts: Iterable[str]) -> str:
    """A small set of characters of which each text has at least one. Marks such as `<` and `[` go before letters."""
    chosen: list[str] = []
    for text in sorted(texts):
        if not any(character in text for character in chosen):
            chosen.append(min(text, key=lambda character: character.isalnum() or character in " \n\t\"'\\"))
    return "".join(chosen)


def _alternatives(texts: Iterable[str]) -> str:
    """A pattern that matches the longest of these texts. It groups them by their first characters, for speed with
    thousands of texts."""
    by_first: dict[str, list[str]] = {}
    ends_here = False
    for text in texts:
        if text:
            by_first.setdefault(text[0], []).append(text[1:])
        else:
            ends_here = True
    options = []
    for first, rests in by_first.items():
        while len(rests) == 1 or (all(rests) and len({rest[0] for rest in rests}) == 1):
            if len(rests) == 1:
                first, rests = first + rests[0], [""]  # noqa: PLW2901  # The common part grows.
                break
            first, rests = first + rests[0][0], [rest[1:] for rest in rests]  # noqa: PLW2901
        options.append(re.escape(first) + ("" if not any(rests) else _alternatives(rests)))
    return f"(?:{'|'.join(options)}){'?' if ends_here and options else ''}" if options else ""
