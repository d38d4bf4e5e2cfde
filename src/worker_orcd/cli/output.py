"""All output of the commands: a job's text, lines, JSON and notices. No other module of `cli` prints.

Ids, names and messages come from the worker, its model file and other clients, so control characters in them are
escaped.
"""

import json
import os
import shutil
import sys
import textwrap
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TextIO

import typer

from worker_orcd.printable import printable, readable

if TYPE_CHECKING:  # Not imported by `serve`.
    from worker_orcd.client import Event


def write(text: str) -> None:
    """Write and flush a piece of a job's text. On a terminal, control characters are replaced."""
    sys.stdout.write(readable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def line(text: str) -> None:
    """Write a line to standard output. On a terminal it is wrapped at words."""
    print(_wrapped(text, sys.stdout), flush=True)


def write_json(value: Any) -> None:
    """Write a line of JSON in ASCII. Dataclasses, such as receipts, become objects."""
    # DEL is the only control character that JSON does not escape.
    print(json.dumps(value, default=_as_object).replace("\x7f", "\\u007f"), flush=True)


def rendered(text: str) -> None:
    """Write a line that its renderer has already made printable, and maybe coloured."""
    print(text, flush=True)


def notice(text: str) -> None:
    """Write a line to standard error. On a terminal it is wrapped at words."""
    print(_wrapped(text, sys.stderr), file=sys.stderr, flush=True)


def aside(text: str) -> None:
    """Write a line to standard error, dimmed on a terminal."""
    plain = bool(os.environ.get("NO_COLOR"))
    typer.secho(_wrapped(text, sys.stderr), err=True, dim=None if plain else True)


def ask(prompt: str) -> None:
    """Write a prompt to standard error, without a line feed."""
    print(prompt, end="", file=sys.stderr, flush=True)


_ERASE_LINE = "\r\x1b[K"


class Text:
    """Shows a job's text as it arrives, and ends its last line."""

    def __init__(self) -> None:
        self._open = False
        self._progress_shown = False

    def show(self, event: "Event") -> None:
        """Show an event: the text of a token, or the progress of the prefill."""
        if event.name == "progress":
            self._show_progress(event.data["processed"], event.data["prompt_tokens"])
            return
        self._erase_progress()
        if event.name == "token" and (piece := event.data["t"]):
            self._open = not piece.endswith("\n")
            write(piece)
        elif event.terminal:
            self.end()

    def _show_progress(self, processed: int, prompt_tokens: int) -> None:
        """Show a line on a terminal, which the next event erases, unless the prompt is already computed."""
        if processed < prompt_tokens and sys.stderr.isatty():
            self._progress_shown = True
            ask(f"{_ERASE_LINE}prompt: {processed} of {prompt_tokens} tokens")

    def _erase_progress(self) -> None:
        if self._progress_shown:
            self._progress_shown = False
            ask(_ERASE_LINE)

    def end(self) -> None:
        """End the last line if it is open."""
        self._erase_progress()
        if self._open:
            self._open = False
            write("\n")


def _wrapped(text: str, stream: TextIO) -> str:
    """The text on one printable line, or wrapped on a terminal. A word that is longer than a line is not broken."""
    text = printable(text)
    if not stream.isatty():
        return text
    return textwrap.fill(text, _columns(stream), break_long_words=False, break_on_hyphens=False)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or shutil.get_terminal_size().columns
    except OSError:
        return shutil.get_terminal_size().columns


def _as_object(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")
