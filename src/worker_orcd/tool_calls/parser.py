"""Parses tool calls and reasoning from a model's output while it is generated."""

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
    """Splits one job's text into parts. The joined parts do not depend on how the text arrives in pieces."""

    def __init__(self) -> None:
        """Begin without held text."""
        self._held = ""
        self._calls = 0

    @property
    def calls(self) -> int:
        """Number of complete calls so far."""
        return self._calls

    def feed(self, text: str) -> list[Part]:
        """Add text, and return the parts that become final."""
        self._held += text
        return self._parts(final=False)

    def finish(self) -> list[Part]:
        """The remaining parts, at the output's natural end."""
        return self._parts(final=True)

    @abstractmethod
    def abandon(self) -> list[Part]:
        """The remaining parts of an output that was cut off. An unfinished call is dropped."""

    def _parts(self, *, final: bool) -> list[Part]:
        parts: list[Part] = []
        while self._step(parts, final=final):
            pass
        return parts

    @abstractmethod
    def _step(self, parts: list[Part], *, final: bool) -> bool:
        """Parse the beginning of the held text. Returns whether more may be parsed."""


class OutputParser(Parser):
    """The parser for all formats that mark calls within the text.

    A stream gets a call's arguments while they are generated, except for the last brace, which follows when the call is
    complete. So the arguments of a call that is cut off are never a JSON object. Without a stream, calls are returned
    when they are complete, and malformed calls as text.
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
        """Begin a parser.

        Args:
            tools: the names of the tools that may be called. If empty, calls are not parsed.
            parallel: whether more than one call is allowed. If not, calls after the first are dropped.
            only: the output consists only of the arguments of a call of this tool.
            formats: the formats to parse, in addition to bare JSON.
            streams: return calls as `CallBegun`, `Arguments` and `CallEnded`, instead of `Call`.
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
        """Whether only reasoning and white space came before."""
        self._trims = False
        """Whether following white space is dropped if a call or the end comes after it."""
        self._after_bare = False
        """Whether a call without a closing mark came before; then another call may follow without an opening mark."""
        self._format: Format | None = None
        self._looked_at = 0
        self._value: JsonScanner | None = None
        self._arguments: JsonScanner | None = None
        """The scanner of the current call's arguments."""
        self._begun = ""
        if only is not None:
            self._open(self._bare)

    def abandon(self) -> list[Part]:
        """The remaining parts of an output that was cut off. An unfinished call is dropped."""
        if self._format is not None:
            self._held, self._format = "", None
        self._tools, self._formats = frozenset(), ()
        return self._parts(final=True)

    def _step(self, parts: list[Part], *, final: bool) -> bool:
        """Parse the beginning of the held text. Returns whether more may be parsed."""
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
        """Parse what follows white space at the start, reasoning or a call. Returns whether that is decided."""
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
        """Begin a call: the held text begins with this format's opening mark."""
        self._format, self._looked_at = one, len(one.opening)
        self._value, self._arguments, self._begun = None, None, ""
        self._at_start = self._trims = self._after_bare = False

    def _call(self, one: Format, parts: list[Part], *, final: bool) -> bool:
        """Parse calls whose opening mark is at the beginning of the held text."""
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
        """Parse the first call as far as it has arrived. Returns False if it is not a call."""
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
    """Whether an object begins like a call."""
    return text[1:].lstrip().startswith(BARE_FIRST)


def _may_become_call(text: str) -> bool:
    """Whether an object may begin like a call once more text has arrived."""
    first = text[1:].lstrip()
    return any(name.startswith(first) for name in BARE_FIRST)


def _begun(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest suffix of the text that is a prefix of a mark."""
    for length in range(min(len(text), max(map(len, marks), default=1) - 1), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
