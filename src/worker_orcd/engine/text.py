"""From token bytes to text that can be shown: whole characters only, and never a part of a stop sequence."""

import codecs


class TextAssembler:
    """Turns one job's token bytes into text that is certain.

    Bytes of a character that is not complete are held back; bytes that can never become one are dropped, so no
    U+FFFD appears that the model did not write. Text that may be the start of a stop sequence is held back until
    it is decided; the sequence itself and what follows it is never shown.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that becomes certain with this token's bytes. Sets `stopped` when a stop sequence is complete."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(piece)
        if not self._stops:
            return self._release(len(self._held))
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text = self._held[: min(found)]
            self._held = ""
            return text
        return self._release(len(self._held) - self._undecided())

    def finish(self) -> str:
        """Text that was held back and that nothing can follow any more."""
        if self.stopped:
            return ""
        return self._release(len(self._held))

    @property
    def held(self) -> str:
        """Text that is held back now: a stop sequence may begin with it."""
        return self._held

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _undecided(self) -> int:
        """Length of the longest end of the held text that a stop sequence begins with."""
        for length in range(min(len(self._held), max(map(len, self._stops)) - 1), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
