"""Where a long text can be cut so that its parts have the tokens that it has as a whole.

llama.cpp first looks for special tokens in a text, the longest first, and keeps what is between them in a linked list,
whose elements it counts from the beginning for each one that it finds. So the time grows with the square of their
number: 32,000 short messages take 20 s in one call, and a fraction of a second in parts. A part can also be the last
one, when the prompt's job has ended.

What is between two special tokens is tokenized by itself. So a text can be cut just before a special token, unless
llama.cpp finds another one across that place.
"""

from collections.abc import Collection, Iterator

PART_BYTES = 4096
"""A part has at least this size."""
_WINDOW_BYTES = 256
"""Where a cut is looked for first; then in twice as much, and so on."""
_SPACES = b" \t\n\v\f\r"
_TRIES = 8
"""Places that are examined in each window: where tokens overlap all the time, a text has no cuts."""


class TextCuts:
    """The cuts that the special tokens of one vocabulary allow."""

    def __init__(self, special: Collection[bytes], stripping: Collection[bytes] = ()) -> None:
        """Take the texts of all tokens that llama.cpp looks for.

        Args:
            special: the texts.
            stripping: those of them that include the white space around them, also where it is a token itself.
        """
        self._texts = sorted({text for text in special if text}, key=len, reverse=True)
        self._marks = [text for text in self._texts if not stripping or _is_kept(text, stripping)]

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
        while start < len(text):
            tries = _TRIES
            for mark in self._marks:
                at = text.find(mark, start, start + width + len(mark))
                while at >= 0 and tries:
                    if self._is_found(text, at, mark):
                        return at
                    tries -= 1
                    at = text.find(mark, at + 1, start + width + len(mark))
            start, width = start + width, width * 2
        return None

    def _is_found(self, text: bytes, at: int, mark: bytes) -> bool:
        """Whether llama.cpp finds this special token at this place, since no other one that it looks for before, and no
        other occurrence of the same one, overlaps it."""
        end = at + len(mark)
        for other in self._texts:
            if len(other) < len(mark):
                break
            begin = max(0, at - len(other) + 1)
            if other != mark and text.find(other, begin, end + len(other) - 1) >= 0:
                return False
        before = text.find(mark, max(0, at - len(mark) + 1), end - 1)
        return before < 0 and text.find(mark, at + 1, end + len(mark) - 1) < 0


def _is_kept(text: bytes, stripping: Collection[bytes]) -> bool:
    """Whether a special token neither includes white space around it nor is itself included in another one."""
    return text not in stripping and not any(byte in _SPACES for byte in text)
