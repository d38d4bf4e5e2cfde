"""Parses the output of gpt-oss, whose messages have channels (OpenAI's harmony format)."""

import re

from worker_orcd.tool_calls.call import (
    Arguments,
    CallBegun,
    CallEnded,
    JsonScanner,
    Part,
    Reasoning,
    Text,
    call_of,
    json_values,
)
from worker_orcd.tool_calls.parser import Parser

_MESSAGE = "<|message|>"
_ENDS = re.compile(r"<\|(?:end|start|call|return|channel)\|>")
_MARK = re.compile(r"<\|?[a-z]{0,8}\|?$")
"""Text that may become a mark with more text."""
_HEADER = re.compile(r"\s*(?:<\||to=|(?:<|to?)?$)")
"""Beginnings of a header."""
_RECIPIENT = re.compile(r"to=([^\s<]+)")


class HarmonyParser(Parser):
    """The parser of one output, which begins after `<|start|>assistant`.

    The channel `analysis` is reasoning, a message to `functions.NAME` is a call, and all else is text. Calls are
    returned as by `OutputParser`.
    """

    def __init__(
        self, tools: frozenset[str] = frozenset(), *, parallel: bool = True, streams: bool = False
    ) -> None:
        """Begin a parser. The arguments are those of `OutputParser`."""
        super().__init__()
        self._tools = tools
        self._parallel = parallel
        self._streams = streams
        self._kind: type[Text] | type[Reasoning] | None = None
        """The kind of the current message's content; None in a header or a call."""
        self._name: str | None = None
        """The name of the called function."""
        self._arguments: JsonScanner | None = None

    def abandon(self) -> list[Part]:
        """The remaining parts of an output that was cut off. An unfinished call is dropped."""
        if self._name is not None:
            self._held, self._name = "", None
        return self._parts(final=True)

    def _step(self, parts: list[Part], *, final: bool) -> bool:
        if self._kind is None and self._name is None:
            return self._header(final=final)
        found = _ENDS.search(self._held)
        if self._name is not None:
            self._call(self._name, parts, found.start() if found else None, final=final)
        elif self._kind is not None:
            begun = None if found or final else _MARK.search(self._held)
            end = found.start() if found else begun.start() if begun else len(self._held)
            if end:
                parts.append(self._kind(self._held[:end]))
            self._held = self._held[end:]
        if found:
            self._kind = None
        return found is not None

    def _header(self, *, final: bool) -> bool:
        """Parse the header of a message."""
        if not _HEADER.match(self._held):
            self._kind = Text
            return True
        place = self._held.find(_MESSAGE)
        if place < 0:
            if not final:
                return False
            if "<|" in self._held or not self._held:
                self._held = ""
                return False
            self._kind = Text  # A constrained output has no header.
            return True
        header, self._held = self._held[:place], self._held[place + len(_MESSAGE) :]
        recipient = _RECIPIENT.search(header)
        name = recipient[1].removeprefix("functions.") if recipient else ""
        if name in self._tools:
            self._name = name
            self._arguments = None
        else:
            self._kind = Reasoning if recipient or "analysis" in header else Text
        return True

    def _call(self, name: str, parts: list[Part], end: int | None, *, final: bool) -> None:
        """Parse a call as far as it has arrived."""
        wanted = self._parallel or not self._calls
        if self._streams and wanted:
            if self._arguments is None:
                self._arguments = JsonScanner(0)
                parts.append(CallBegun(name))
            begun = None if end is not None or final else _MARK.search(self._held)
            if text := self._arguments.scan(self._held[: begun.start() if begun else end]):
                parts.append(Arguments(text))
        if end is None and not final:
            return
        body = self._held[:end]
        self._held = "" if end is None else self._held[end:]
        self._name = None
        values = json_values(body)
        one = values[0] if values is not None and len(values) == 1 else None
        call = call_of({"name": name, "arguments": one})
        if call is None:
            parts += [] if self._streams else [Text(body)]
        elif wanted:
            self._calls += 1
            parts += [Arguments("}"), CallEnded()] if self._streams else [call]
