"""What the commands write: text as it comes, lines of JSON, and asides."""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

import typer

from worker_orcd.client import Event, Receipt

_OBEYED = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\t\n\r"
}
"""Control characters. What a model says is for reading: no terminal is to obey it."""


def write(text: str) -> None:
    """Write a piece of text at once. What the terminal's encoding cannot say is shown as "?" and ends nothing."""
    if sys.stdout.isatty():
        text = text.translate(_OBEYED)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Write a line of JSON; a receipt in it becomes an object."""
    print(json.dumps(value, default=_as_object), flush=True)


def aside(line: str) -> None:
    """Say something beside the output proper, dimly on a terminal."""
    plain = bool(os.environ.get("NO_COLOR"))
    typer.secho(line, err=True, dim=None if plain else True)


class Text:
    """A job's text, which comes in pieces; once it is over, its last line is ended."""

    def __init__(self) -> None:
        self._open = False

    def show(self, event: Event) -> None:
        """Show what there is to show of an event."""
        if event.name == "token" and (piece := event.data["t"]):
            self._open = not piece.endswith("\n")
            write(piece)
        elif event.terminal:
            self.end()

    def end(self) -> None:
        """That was all."""
        if self._open:
            self._open = False
            write("\n")


def _as_object(value: object) -> object:
    if isinstance(value, Receipt):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
