"""The program: writes the pages that are not current.

With `--check` nothing is written; the names of pages that are not current are printed, and the exit code is 1.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.docs.lifecycle import lifecycle_page
from tools.docs.reference import reference_page

DOCS = Path(__file__).parents[2] / "docs"

PAGES: dict[str, Callable[[], str]] = {"lifecycle.md": lifecycle_page, "reference.md": reference_page}


def stale() -> list[Path]:
    """Pages that differ from what the code says now."""
    return [
        path
        for name, page in PAGES.items()
        if not (path := DOCS / name).exists() or path.read_text(encoding="utf-8") != page() + "\n"
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is not current, or only say so. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    check = parser.parse_args(arguments).check
    pages = stale()
    for path in pages:
        name = path.relative_to(DOCS.parent)
        if check:
            print(f"{name} is not current: run `make docs`", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(PAGES[path.name]() + "\n", encoding="utf-8")
            print(f"wrote {name}")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
