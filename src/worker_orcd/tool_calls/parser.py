"""Finds calls of tools and reasoning in a model's output while it is written."""

from abc import ABC, abstractmethod

from worker_orcd.tool_calls.call import (
    Arguments,
    Call,
    CallBegun,
    CallEnded,
    JsonScanner,
    Part,
    Reasoning,
    Text,
    called,
    in_json_string,
)
from worker_orcd.tool_calls.formats import (
    BARE,
    BARE_FIRST,
    BEFORE_VALUE,
    FORMATS,
    REASONING,
    Format,
    arguments_of,
)


class Parser(ABC):
    """Turns one job's text into parts. However the text is cut into pieces, the joined parts are the same."""

    def __init__(self) -> None:
        """Begin with nothing held."""
        self._held = ""
        self._calls = 0

    @property
    def calls(self) -> int:
        """Complete calls found so far."""
        return self._calls

    def feed(self, text: str) -> list[Part]:
        """What becomes certain with this text."""
        self._held += text
        return self._parts(final=False)

    def finish(self) -> list[Part]:
        """What is left at the output's natural end."""
        return self._parts(final=True)

    @abstractmethod
    def abandon(self) -> list[Part]:
        """What is left of an output that was broken off: nothing of an unfinished call."""

    def _parts(self, *, final: bool) -> list[Part]:
        parts: list[Part] = []
        while self._step(parts, final=final):
            pass
        return parts

    @abstractmethod
    def _step(self, parts: list[Part], *, final: bool) -> bool:
        """Decide on the beginning of the held text. Returns whether there may be more to decide."""


class OutputParser(Parser):
    """The parser of all formats that mark calls within the text.

    A stream gets a call's arguments while they are written, except for their last brace, which follows when the call is
    complete. So the arguments of a call that is broken off are never a JSON object. Without a stream a call is given
    out when it is complete, and a malformed one as text.
    """

    def __init__(
        self,
        tools: frozenset[str] = frozenset(),
        *,
        parallel: bool = True,
        only: str | None = None,
        formats: tuple[Format, ...] = FORMATS,
        streams: bool = False,
    ) -> None:
        """Begin.

        Args:
            tools: the names of the tools that may be called; without any, no calls are looked for.
            parallel: whether more than one call is wanted; if not, those behind the first are left out.
            only: the output is nothing but the arguments of a call of this tool.
            formats: the formats to find, in addition to bare JSON.
            streams: give out calls as `CallBegun`, `Arguments` and `CallEnded`, instead of as `Call`.
        """
        super().__init__()
        self._bare = BARE if only is None else arguments_of(only)
        self._only = only
        self._tools = tools
        self._parallel = parallel
        self._formats = formats if tools else ()
        self._streams = streams
        self._thought: str | None = None
        """The mark that ends the reasoning, while the model reasons."""
        self._at_start = True
        """Nothing but reasoning and white space came before."""
        self._trims = False
        """White space that comes next is left out if nothing but a call or the end follows it."""
        self._after_bare = False
        """A call without a closing mark came before: another may follow without an opening one."""
        self._format: Format | None = None
        self._looked_at = 0
        self._value: JsonScanner | None = None
        self._arguments: JsonScanner | None = None
        """Of the call that has begun."""
        self._begun = ""
        if only is not None:
            self._open(self._bare)

    def abandon(self) -> list[Part]:
        """What is left of an output that was broken off: nothing of an unfinished call."""
        if self._format is not None:
            self._held, self._format = "", None
        self._tools, self._formats = frozenset(), ()
        return self._parts(final=True)

    def _step(self, parts: list[Part], *, final: bool) -> bool:
        """Decide on the beginning of the held text. Returns whether there may be more to decide."""
        if self._thought is not None:
            return self._reasoning(parts, self._thought, final=final)
        if self._format is not None:
            return self._call(self._format, parts, final=final)
        if self._at_start or self._trims:
            return self._beginning(final=final)
        return self._text(parts, final=final)

    def _reasoning(self, parts: list[Part], mark: str, *, final: bool) -> bool:
        place = self._held.find(mark)
        end = place if place >= 0 else len(self._held) - (0 if final else _begun(self._held, (mark,)))
        if end:
            parts.append(Reasoning(self._held[:end]))
        self._held = self._held[end + len(mark) if place >= 0 else end :]
        if place >= 0:
            self._thought, self._trims = None, True
        return place >= 0

    def _beginning(self, *, final: bool) -> bool:
        """Look at what follows white space at the start, reasoning or a call. Returns whether that is decided."""
        rest = self._held.lstrip(" \t\r\n;" if self._after_bare else None)
        if not rest and not final:
            return False
        if not rest and self._trims:
            self._held = ""
            return False
        if self._at_start:
            for begins, ends in REASONING:
                if rest.startswith(begins):
                    self._held, self._thought = rest[len(begins) :], ends
                    return True
                if begins.startswith(rest) and not final:
                    return False
        if self._tools and (self._at_start or self._after_bare) and rest.startswith("{"):
            if _may_be_call(rest):
                self._held = rest if self._trims else self._held
                self._open(self._bare)
                return True
            if not final and _may_become_call(rest):
                return False
        marks = [one.opening for one in self._formats]
        if self._trims and not final and any(mark.startswith(rest) for mark in marks):
            return False
        if self._trims and (self._at_start or any(rest.startswith(mark) for mark in marks)):
            self._held = rest
        self._at_start = self._trims = self._after_bare = False
        return True

    def _text(self, parts: list[Part], *, final: bool) -> bool:
        found = [(place, one) for one in self._formats if (place := self._held.find(one.opening)) >= 0]
        first: Format | None = None
        if found:
            place, first = min(found, key=lambda pair: pair[0])
        else:
            marks = tuple(one.opening for one in self._formats)
            place = len(self._held) - (0 if final else _begun(self._held, marks))
        if place:
            parts.append(Text(self._held[:place]))
        self._held = self._held[place:]
        if first is not None:
            self._open(first)
        return first is not None

    def _open(self, one: Format) -> None:
        """The held text begins with this format's opening mark."""
        self._format, self._looked_at = one, len(one.opening)
        self._value, self._arguments, self._begun = None, None, ""
        self._at_start = self._trims = self._after_bare = False

    def _call(self, one: Format, parts: list[Part], *, final: bool) -> bool:
        """Read calls whose opening mark is at the beginning of the held text."""
        start = len(one.opening)
        if not self._head(one, parts):
            self._format = None
            return True
        if not one.closing and self._value is None and (before := BEFORE_VALUE.match(self._held, start)):
            self._value = JsonScanner(before.end())
        if self._value is not None:
            self._value.scan(self._held)
            if self._value.complete:
                self._close(parts, one.read(self._held[start : self._value.end]), self._value.end)
                return True
        while one.closing and (place := self._held.find(one.closing, self._looked_at)) >= 0:
            calls = one.read(self._held[start:place])
            after = place + len(one.closing)
            if calls is None and in_json_string(self._held[start:place]):
                self._looked_at = after
                continue
            self._close(parts, calls, after)
            return True
        if not final:
            self._looked_at = max(self._looked_at, len(self._held) - len(one.closing) + 1)
            return False
        self._close(parts, one.read(self._held[start:]), len(self._held))
        return False

    def _head(self, one: Format, parts: list[Part]) -> bool:
        """Look at the first call, and give out what is there of it. Returns False if it is no call."""
        if self._arguments is None:
            head = one.head.match(self._held, len(one.opening)) if one.head else None
            if head is None or (self._calls and not self._parallel):
                return True
            name = self._only or next(filter(None, head.groups()))
            if one is self._bare and name not in self._tools:
                return False
            self._begun, self._arguments = name, JsonScanner(head.end())
            if self._streams:
                parts.append(CallBegun(name))
        if self._streams and (text := self._arguments.scan(self._held)):
            parts.append(Arguments(text))
        return True

    def _close(self, parts: list[Part], calls: list[Call] | None, after: int) -> None:
        bare = self._format is self._bare
        closed = bool(self._format and self._format.closing)
        shown = self._streams and bool(self._begun)
        malformed = calls is None or (self._begun and calls[0].name != self._begun)
        if calls is None or malformed or (bare and not all(call.name in self._tools for call in calls)):
            if not shown:
                parts.append(Text(self._held[:after]))
        else:
            wanted = calls if self._parallel else calls[: 1 - min(1, self._calls)]
            self._calls += len(wanted)
            if shown and wanted:
                parts += [Arguments("}"), CallEnded()]
                wanted = wanted[1:]
            for call in wanted:
                parts += called(call) if self._streams else [call]
            self._trims, self._after_bare = True, not closed and self._only is None
        self._held, self._format = self._held[after:], None


def _may_be_call(text: str) -> bool:
    """Whether an object begins as a call does."""
    return text[1:].lstrip().startswith(BARE_FIRST)


def _may_become_call(text: str) -> bool:
    """Whether more text may make it begin so."""
    first = text[1:].lstrip()
    return any(name.startswith(first) for name in BARE_FIRST)


def _begun(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of the text that one of the marks begins with."""
    for length in range(min(len(text), max(map(len, marks), default=1) - 1), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
