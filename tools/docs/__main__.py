"""The program: writes the files that are not current.

With `--check` nothing is written; the names of files that are not current are printed, and the exit code is 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tools.docs.lifecycle import lifecycle_page
from tools.docs.reference import reference_page
from worker_orcd import settings

ROOT = Path(__file__).parents[2]


def _table_of_options() -> str:
    return json.dumps([asdict(option) for option in settings.options()], ensure_ascii=False, indent=1)


PAGES: dict[Path, Callable[[], str]] = {
    Path("docs/lifecycle.md"): lifecycle_page,
    Path("docs/reference.md"): reference_page,
    Path("src/worker_orcd/options.json"): _table_of_options,
}


def stale() -> list[Path]:
    """Files that differ from what the code says now."""
    return [
        name
        for name, page in PAGES.items()
        if not (path := ROOT / name).exists() or path.read_text(encoding="utf-8") != page() + "\n"
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is not current, or only say so. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not current")
    check = parser.parse_args(arguments).check
    pages = stale()
    for path in pages:
        if check:
            print(f"{path} is not current: run `make docs`", file=sys.stderr)
        else:
            (ROOT / path).parent.mkdir(exist_ok=True, parents=True)
            (ROOT / path).write_text(PAGES[path]() + "\n", encoding="utf-8")
            print(f"wrote {path}")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
