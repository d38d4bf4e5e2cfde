"""Finds words that the project does not use: `python -m tools.words`, a part of `make lint`.

docs/vocabulary.md says which word to use instead. The search is plain: it ignores case and looks at whole
words, line by line. `_`, digits and punctuation separate words, so parts of names count.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORBIDDEN: dict[str, str] = {
    "armed": "abortable",
    "asker": "client, caller",
    "books": "record; KV usage; count of cells",
    "carried on": "requeued",
    "carries on": "continues",
    "carry on": "continue",
    "carrying on": "requeueing",
    "dear": "expensive",
    "dearer": "more expensive",
    "get on": "make progress",
    "gets on": "makes progress",
    "halt": "stop",
    "halted": "stopped",
    "halts": "stops",
    "heard": "received",
    "hears": "receives, gets",
    "hopeless": "permanently failed",
    "let in": "admitted, accepted",
    "let through": "protected",
    "mend": "fix, repair",
    "mended": "fixed, repaired",
    "mends": "fixes, repairs",
    "overheard": "forwarded",
    "owed": "protected",
    "put back": "requeued",
    "put out": "preempted; generated",
    "puts back": "requeues",
    "puts out": "preempts; generates",
    "somebody": "the client, the user, another job: name it",
    "told": "reported, written, logged",
    "want of": "lack of",
    "whomever": "name the one",
    "wish": "stop request",
    "wishes": "stop requests",
}
"""Each forbidden word or phrase, and what to write instead."""

LOOKED_AT = ("src", "tests", "tools", "bench", "docs", "deploy", ".ci")
FILES = ("README.md", "CHANGELOG.md", "Makefile", "mkdocs.yml", "pyproject.toml")
SUFFIXES = frozenset(
    [
        *("", ".conf", ".css", ".env", ".feature", ".html", ".js", ".json", ".md", ".mjs", ".py", ".service"),
        *(".sh", ".toml", ".yaml", ".yml"),
    ]
)
NOT_OURS = ("docs/assets/", "tests/chat_templates/", "tests/clients/node/package-lock.json")
"""Files of other projects."""
NAMES_THE_WORDS = ("docs/vocabulary.md", "tools/words.py", "tests/unit/test_words.py")

_ANY = "|".join(word.replace(" ", "[ _-]") for word in FORBIDDEN)
_PATTERN = re.compile(rf"(?<![a-z])(?:{_ANY})(?![a-z])", re.IGNORECASE)


def found_in(text: str) -> Iterator[tuple[int, str]]:
    """Line number and forbidden word, for each use in a text."""
    for number, line in enumerate(text.splitlines(), start=1):
        for match in _PATTERN.finditer(line):
            yield number, re.sub(r"[_-]", " ", match[0].lower())


def files(root: Path = ROOT) -> Iterator[Path]:
    """The project's own text files, but for those that name the words."""
    candidates = [path for folder in LOOKED_AT for path in sorted((root / folder).rglob("*"))]
    for path in [*candidates, *(root / name for name in FILES)]:
        name = path.relative_to(root).as_posix()
        ours = "__pycache__" not in name and "node_modules" not in name and not name.startswith(NOT_OURS)
        if ours and path.is_file() and path.suffix in SUFFIXES and name not in NAMES_THE_WORDS:
            yield path


def complaints(paths: Iterable[Path], root: Path = ROOT) -> Iterator[str]:
    """One line for each use of a forbidden word in these files."""
    for path in paths:
        for number, word in found_in(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(root)}:{number}: {word!r}: write {FORBIDDEN[word]}"


if __name__ == "__main__":
    lines = list(complaints(files()))
    print(
        "\n".join(
            [*lines, f"{len(lines)} words that docs/vocabulary.md forbids" if lines else "words: all fine"]
        )
    )
    sys.exit(bool(lines))
