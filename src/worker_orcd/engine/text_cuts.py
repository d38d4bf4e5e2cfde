"""Where a long text can be cut so that its parts have the tokens that it has as a whole.

llama.cpp first looks for special tokens in a text, the longest first, and keeps what is between them in a linked list,
whose elements it counts from the beginning for each one that it finds. So the time grows with the square of their
number: 32,000 short messages take over 10 s in one call, and 2 s in parts. A part can also be the last one, when the
prompt's job has ended.

What is between two special tokens is tokenized by itself. So a text can be cut just before a special token, unless
llama.cpp finds another one across that place.
"""

import re
from collections.abc import Collection, Iterator

PART_BYTES = 4096
"""A part has at least this size."""
_WINDOW_BYTES = 256
"""Where a cut is looked for first; then in twice as much, and so on."""
_SPACES = b" \t\n\v\f\r"
_TRIES = 8
"""Places that are examined in each window: where tokens overlap all the time, a text has no cuts."""
_START_BYTES = 2


class TextCuts:
    """The cuts that the special tokens of one vocabulary allow."""

    def __init__(self, special: Collection[bytes], stripping: Collection[bytes] = ()) -> None:
        """Take the texts of all tokens that llama.cpp looks for.

        Args:
            special: the texts.
            stripping: those of them that include the white space around them, also where it is a token itself.
        """
        texts = {text for text in special if text}
        self._longest = max(map(len, texts), default=0)
        self._by_start: dict[bytes, list[bytes]] = {}
        """There may be thousands."""
        for text in texts:
            self._by_start.setdefault(text[:_START_BYTES], []).append(text)
        self._marks = {text for text in texts if not stripping or _is_kept(text, stripping)}
        firsts = sorted({text[:1] for text in self._marks})
        self._first = re.compile(b"[" + b"".join(map(re.escape, firsts)) + b"]") if firsts else None

    def parts(self, text: bytes) -> Iterator[bytes]:
        """The parts of a text in UTF-8, which together are the text."""
        begin = 0
        while (cut := self._next(text, begin + PART_BYTES)) is not None:
            yield text[begin:cut]
            begin = cut
        yield text[begin:]

    def _next(self, text: bytes, start: int) -> int | None:
        """A place from `start` on where the text can be cut."""
        width = _WINDOW_BYTES
        while self._first is not None and start < len(text):
            tries = _TRIES
            for first in self._first.finditer(text, start, start + width):
                at = first.start()
                for mark in self._at(text, at):
                    if mark in self._marks and self._is_found(text, at, mark):
                        return at
                    tries -= 1
                if tries <= 0:
                    break
            start, width = start + width, width * 2
        return None

    def _is_found(self, text: bytes, at: int, mark: bytes) -> bool:
        """Whether llama.cpp finds this special token at this place, since no other one that it may look for before, and
        no earlier occurrence of the same one, overlaps it."""
        for begin in range(max(0, at - self._longest + 1), at + len(mark)):
            for other in self._at(text, begin):
                overlaps = begin + len(other) > at and len(other) >= len(mark)
                if overlaps and (other != mark or begin < at):
                    return False
        return True

    def _at(self, text: bytes, at: int) -> Iterator[bytes]:
        """The special tokens whose texts are at this place."""
        for length in range(1, _START_BYTES + 1):
            for one in self._by_start.get(text[at : at + length], ()):
                if text.startswith(one, at):
                    yield one


def _is_kept(text: bytes, stripping: Collection[bytes]) -> bool:
    """Whether a special token neither includes white space around it nor is itself included in another one."""
    return text not in stripping and not any(byte in _SPACES for byte in text)
