"""The site that `make docs` builds is complete, and requests nothing from other hosts."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.docs.blocks import PAGES, ROOT, on_site

SOURCES = ("mkdocs.yml", "README.md", "CHANGELOG.md", "LICENSE", "docs", "tools", "src/worker_orcd/console")


class Document(HTMLParser):
    """What a page of the site names: anchors, links, and what a browser fetches with it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.menu: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Parse a page."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
            if "md-nav__link" in given.get("class", ""):
                self.menu.append(given["href"])
        elif tag != "a":
            self.fetched += [given[name] for name in ("href", "src", "srcset", "data") if name in given]


def documents(site: Path) -> Iterator[tuple[Path, Document]]:
    """All but 404.html, whose links count from a server's top."""
    for file in sorted(site.glob("**/*.html")):
        if file.name != "404.html":
            yield file, Document(file)


def test_every_page_is_in_the_menu_and_the_readme_comes_first(site: Path) -> None:
    """Also new pages."""
    menu = Document(site / "quickstart.html").menu
    reached = {"quickstart.html" if link.startswith("#") or not link else link.split("#")[0] for link in menu}
    assert {on_site(page) for page in PAGES} == reached
    assert "An LLM inference worker that can stop" in (site / "index.html").read_text(encoding="utf-8")


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    """In the built site, also those of menus and those to other files."""
    pages = dict(documents(site))
    dead = []
    for file, document in pages.items():
        for link in document.links + document.fetched:
            target, anchor = urlsplit(link), urlsplit(link).fragment
            there = (file.parent / unquote(target.path)).resolve() if target.path else file
            known = pages[there].anchors if there in pages else set()
            if not there.is_file() or (anchor and anchor not in known):
                dead.append(f"{file.name}: {link}")
    assert dead == []


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    """No page and no style sheet names another host for what a browser fetches by itself."""
    assert [link for _, document in documents(site) for link in document.fetched if "//" in link] == []
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", styles) == []


def test_a_table_s_code_shows_no_escapes(site: Path) -> None:
    """GitHub requires an escape before a bar in a table's code, and does not show it."""
    assert "<code>started progress* token* (end|error)</code>" in (site / "index.html").read_text(
        encoding="utf-8"
    )


def test_a_page_that_is_left_out_and_a_dead_link_end_the_build(tmp_path: Path) -> None:
    """`--strict` detects them, so a successful build proves that there are none."""
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "new.md").write_text("# New\n\n[gone](gone.md), [nowhere](reference.md#nowhere)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode != 0
    for complaint in ('not included in the "nav"', "'gone.md'", "does not contain an anchor '#nowhere'"):
        assert complaint in built.stderr
