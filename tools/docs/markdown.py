"""Parts of Markdown pages, and what docstrings say."""

import ast
import inspect
from collections.abc import Iterable, Sequence

MADE = "<!-- Made by `make docs` from the code; change it there. -->"
"""Stands on top of each of these pages."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: object) -> str:
    """As code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def first_line(documented: object) -> str:
    """The first sentence or paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def described(kind: type) -> dict[str, str]:
    """Each member of an enum, by its value, with the docstring that stands below it."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - a class's source is a class
    reported: dict[str, str] = {}
    member = ""
    for node in body.body:
        match node:
            case ast.Assign(value=ast.Constant(value=str(value))):
                member = reported[value] = ""
                member = value
            case ast.Expr(value=ast.Constant(value=str(text))) if member:
                reported[member] = " ".join(text.split())
    return reported
