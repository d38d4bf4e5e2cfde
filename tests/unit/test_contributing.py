"""The page for contributors names files and names that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
WALKS = {
    title: text for title, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])
}  # fmt: skip
PATH = re.compile(r"`((?:src|tests|deploy|tools)/[^`]*)`")
KINDS = ("sampling option", "endpoint", "engine", "metric", "log event")
NAME = re.compile(r"`(_?[A-Za-z]\w*)(?:\([^`]*\))?`")


def sources_in(text: str) -> str:
    """The source of all files that a part of the page names."""
    return "\n".join(
        (ROOT / path).read_text(encoding="utf-8") for path in PATH.findall(text) if path.endswith(".py")
    )


@pytest.mark.parametrize("path", sorted(set(PATH.findall(PAGE))))
def test_each_file_exists(path: str) -> None:
    """A file that moves takes the page with it."""
    assert (ROOT / path).exists()


@pytest.mark.parametrize("walk", [walk for walk in WALKS if walk.startswith("A new")])
def test_each_name_is_in_the_files_of_its_walk(walk: str) -> None:
    """Classes, functions and constants that a walk names are in the files that it names."""
    source = sources_in(WALKS[walk])
    names = NAME.findall(WALKS[walk])
    assert PATH.findall(WALKS[walk])
    assert [name for name in names if not re.search(rf"\b{name}\b", source)] == []


def test_there_is_a_walk_for_each_kind_of_change() -> None:
    """The kinds of change that the page promises."""
    assert {f"A new {kind}" for kind in KINDS} <= set(WALKS)
