"""Optional programs. `@pytest.mark.needs("zsh")` skips a test before any of its fixtures starts something."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable

import pytest

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

SEARCH_PATH = os.environ.get("TESTS_PATH") or f"{os.environ.get('PATH', '')}:/usr/sbin"
"""Debian keeps servers in a folder that is on root's PATH only."""

_REASON = re.compile(r"needs (\S+), which is not installed")


def find(program: str) -> str | None:
    """The path of an optional program, None if it is not installed."""
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
    """How many tests were skipped for want of each program."""
    reasons = (report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    return Counter(found[1] for reason in reasons if (found := _REASON.search(reason)))


def summary(skipped: Counter[str]) -> list[str]:
    """What to say at the end of a run: one line for each missing program."""
    return [
        f"{program}: {count} skipped (on Debian: apt-get install {PACKAGES[program]})"
        for program, count in sorted(skipped.items())
    ]
