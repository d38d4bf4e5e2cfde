"""Turns token bytes into text that can be shown: whole characters only, and no part of a stop sequence."""

import codecs
from dataclasses import dataclass, replace


@dataclass(slots=True)
class Indentation:
    """Cuts a text at the first line (after the first one) with too little indentation, before the line's first
    character that is neither a space nor a tab.

    Attributes:
        least: minimum number of spaces and tabs at the beginning of each line; 0: no minimum.
        blanks: number of spaces and tabs at the beginning of the last line so far; None: the line is indented enough.
        cut: whether the text was cut.
    """

    least: int
    blanks: int | None = None
    cut: bool = False

    def feed(self, text: str) -> str:
        """Add text, and return the part before the cut."""
        if not self.least:
            return text
        for place, character in enumerate(text):
            if self.blanks is not None and character in " \t":
                self.blanks += 1
            elif self.blanks is not None and self.blanks < self.least:
                self.cut = True
                return text[:place]
            else:
                self.blanks = 0 if character == "\n" else None
        return text


class TextAssembler:
    """Turns one job's token bytes into final text.

    Bytes of an incomplete character are held back. Bytes that can never become a character are dropped, so no U+FFFD
    appears that the model did not write. Text that may be the start of a stop sequence is held back until that is
    certain; a stop sequence and the text after it are never shown. A line with less indentation than `n_indent` ends
    the text, after its indentation.
    """

    def __init__(self, stops: tuple[str, ...] = (), n_indent: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._stops = stops
        self._held = ""
        self._indentation = Indentation(n_indent)
        self.stopped = False

    @property
    def cut(self) -> bool:
        """Whether a line had too little indentation, so that the output ends."""
        return self._indentation.cut

    def feed(self, piece: bytes) -> str:
        """Add a token's bytes, and return the text that becomes final. Sets `stopped` at a complete stop sequence."""
        if self.stopped or self.cut:
            return ""
        self._held += self._decoder.decode(piece)
        if not self._stops:
            return self._release(len(self._held))
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text = self._release(min(found))
            self._held = ""
            return text
        return self._release(len(self._held) - self._undecided())

    def finish(self) -> str:
        """The text that was held back, at the end of the output."""
        if self.stopped or self.cut:
            return ""
        return self._release(len(self._held))

    @property
    def held(self) -> str:
        """The text held back now, because a stop sequence may begin with it."""
        return "" if self.cut or not self._held else replace(self._indentation).feed(self._held)

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return self._indentation.feed(text)

    def _undecided(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop sequence."""
        for length in range(min(len(self._held), max(map(len, self._stops)) - 1), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
