"""The check of the vocabulary finds forbidden words, as words and within names, and nothing else."""

from pathlib import Path

import pytest

from tools.words import FORBIDDEN, ROOT, complaints, files, found_in


@pytest.mark.parametrize("word", FORBIDDEN)
def test_each_forbidden_word_is_found(word: str) -> None:
    """At the beginning of a sentence, and as part of a name."""
    name = word.replace(" ", "_")
    assert list(found_in(f"fine\n{word.capitalize()} it.\n")) == [(2, word)]
    assert list(found_in(f"def test_{name}_again() -> None:")) == [(1, word)]


def test_parts_of_longer_words_are_not_found() -> None:
    """Letters on either side make another word."""
    assert list(found_in("untold, unarmed, recommend, booksy, amended, asphalt, Halter")) == []


def test_a_line_names_the_place_the_word_and_its_replacement(tmp_path: Path) -> None:
    """As a compiler names them."""
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("One\nThe first wish counts.\n", encoding="utf-8")
    assert list(files(tmp_path)) == [page]
    assert list(complaints([page], tmp_path)) == ["docs/page.md:2: 'wish': write stop request"]


def test_all_of_the_project_is_looked_at() -> None:
    """Source, console, tests, pages, deployment files and the changelog; not the files of other projects."""
    names = {path.relative_to(ROOT).as_posix() for path in files()}
    assert names >= {
        "CHANGELOG.md",
        "README.md",
        "deploy/observability/alerts.yml",
        "docs/architecture.md",
        "src/worker_orcd/console/app.js",
        "src/worker_orcd/worker/worker.py",
        "tests/features/cancel.feature",
    }
    assert not [name for name in names if "chat_templates" in name]


def test_the_page_lists_each_forbidden_word() -> None:
    """The vocabulary is one page."""
    page = (ROOT / "docs" / "vocabulary.md").read_text(encoding="utf-8")
    assert [word for word in FORBIDDEN if f"{word}" not in page] == []
