"""Optional programs, client libraries and models. `@pytest.mark.needs("zsh")` skips a test before fixtures start."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "fish": "fish",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "zsh": "zsh",
}
"""Optional programs, and the Debian package of each."""

PLACES = {
    "gemma3": ROOT / ".outside/gemma3.gguf",
    "node-clients": ROOT / "tests/clients/node/node_modules",
    "python-clients": ROOT / ".outside/python/bin/python",
    "python-benchmarks": ROOT / ".outside/benchmarks/bin/python",
    "python-frameworks": ROOT / ".outside/frameworks/bin/python",
    "ray": ROOT / ".outside/ray.stamp",
}
"""What `make outside` installs in this folder: a second model, the client libraries that are tried, and Ray."""

HIDDEN = frozenset(os.environ.get("TESTS_WITHOUT", "").split())
"""What counts as missing though it is there (`make without`)."""

SEARCH_PATH = os.environ.get("TESTS_PATH") or f"{os.environ.get('PATH', '')}:/usr/sbin"
"""Debian keeps servers in a folder that is on root's PATH only."""

_REASON = re.compile(r"needs (\S+), which is not installed")


def find(program: str) -> str | None:
    """The path of an optional program, library or model, None if it is not installed."""
    if program in PLACES:
        place = PLACES[program]
        return str(place) if program not in HIDDEN and place.exists() else None
    if program not in PACKAGES:
        raise LookupError(f"{program} is not in tests/programs.py")
    return shutil.which(program, path=SEARCH_PATH)


def needed(item: pytest.Item) -> list[str]:
    """The optional programs that a test needs."""
    return [program for mark in item.iter_markers("needs") for program in mark.args]


def skip_without(item: pytest.Item) -> None:
    """Skip a test if a program that it needs is missing."""
    for program in needed(item):
        if find(program) is None:
            pytest.skip(f"needs {program}, which is not installed")


def skipped_without(reports: Iterable[pytest.TestReport]) -> Counter[str]:
    """How many tests were skipped for lack of each program."""
    reasons = (report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    return Counter(found[1] for reason in reasons if (found := _REASON.search(reason)))


def summary(skipped: Counter[str]) -> list[str]:
    """The lines for the end of a run, one for each missing program."""
    return [
        f"{program}: {count} skipped "
        + (f"(on Debian: apt-get install {PACKAGES[program]})" if program in PACKAGES else "(make outside)")
        for program, count in sorted(skipped.items())
    ]
