"""Turns token bytes into text that can be shown: whole characters only, and no part of a stop sequence."""

import codecs
from dataclasses import dataclass, replace


@dataclass(slots=True)
class Indentation:
    """Cuts a text where a line after the first has too little indentation: before its first character that is neither
    a space nor a tab.

    Attributes:
        least: spaces and tabs that each line must begin with; 0: any number.
        blanks: of the last line so far; None: the line is indented enough.
        cut: whether the text was cut.
    """

    least: int
    blanks: int | None = None
    cut: bool = False

    def feed(self, text: str) -> str:
        """What is kept of more text."""
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

    Bytes of a character that is not complete are held back; bytes that can never become one are dropped, so no
    U+FFFD appears that the model did not write. Text that may be the start of a stop sequence is held back until
    it is decided; the sequence itself and what follows it is never shown. Nor is a line with less indentation than
    `n_indent`, but for its indentation.
    """

    def __init__(self, stops: tuple[str, ...] = (), n_indent: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._stops = stops
        self._held = ""
        self._indentation = Indentation(n_indent)
        self.stopped = False

    @property
    def cut(self) -> bool:
        """Whether a line had too little indentation; nothing follows the text before it."""
        return self._indentation.cut

    def feed(self, piece: bytes) -> str:
        """The text that becomes certain with this token's bytes. Sets `stopped` when a stop sequence is complete."""
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
        """Text that was held back and that nothing can follow any more."""
        if self.stopped or self.cut:
            return ""
        return self._release(len(self._held))

    @property
    def held(self) -> str:
        """Text that is held back now: a stop sequence may begin with it."""
        return "" if self.cut else replace(self._indentation).feed(self._held)

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
