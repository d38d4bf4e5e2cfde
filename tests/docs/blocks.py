"""The pages of the repository, and their blocks of code, in order."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_TO_FILL_IN = re.compile(r"<[a-z ]+>")
_STATUS_AND_JSON = re.compile(r"(?:\d{3} )?(\{.*\})")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code, or a command or an answer in JSON that stands within a sentence."""

    page: str
    line: int
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """The line that identifies it."""
        return self.text.strip().split("\n", 1)[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.first_line[:60]}"


def on_site(page: str) -> str:
    """The name of a repository page on the site."""
    name = "index.md" if page == "README.md" else page.removeprefix("docs/")
    return name.removesuffix(".md") + ".html"


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page of the repository."""
    for token in _MARKDOWN.parse((ROOT / page).read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence":
            yield Block(page, line, token.info.split(" ")[0], token.content)
        elif token.type == "code_block":
            yield Block(page, line, _guess(token.content), token.content)
        for within in token.children or ():
            yield from _within(within, page, line)


def _guess(text: str) -> str:
    """Indented code does not say what it is: events, a drawing, a receipt, or commands."""
    return "text" if text.startswith("event:") or re.search("[─→]", text) else "sh"


def _within(token: Token, page: str, line: int) -> Iterator[Block]:
    if token.type != "code_inline":
        return
    if token.content.startswith("curl "):
        yield Block(page, line, "sh", token.content)
    elif (found := _STATUS_AND_JSON.fullmatch(token.content)) and _is_json(found[1]):
        yield Block(page, line, "json", found[1])


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def commands(text: str) -> Iterator[str]:
    """The commands of a shell's block, each with all of its lines."""
    so_far = ""
    for line in text.splitlines():
        so_far += line + "\n"
        if not so_far.strip() or so_far.lstrip().startswith("#"):
            so_far = ""
        elif _is_whole(so_far):
            yield so_far.strip()
            so_far = ""
    assert not so_far.strip(), f"not a whole command: {so_far}"


def _is_whole(command: str) -> bool:
    """Whether a shell waits for no more lines. It takes a lone backslash, and only warns of a missing here-document."""
    filled_in = _TO_FILL_IN.sub("something", command)
    looked = subprocess.run(["bash", "-n"], input=filled_in, text=True, capture_output=True, check=False)
    return not looked.stderr and not command.rstrip("\n").endswith("\\")
