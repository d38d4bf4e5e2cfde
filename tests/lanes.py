"""Which lane a test runs in: quick (`make test`), deep (the rest of `make test-all`) or nightly (`make nightly`).

A test is quick unless it is listed here or marked `deep` or `nightly`. `serial` is independent of the lane: such a test
measures time or needs the machine for itself, and runs alone.
"""

from pathlib import Path

import pytest

DEEP = (
    "browser",
    "clients",
    "docs",
    "faults",
    "soak",
    "integration/test_deploy.py",
    "integration/test_observability.py",
    "integration/test_proxy.py",
    "integration/test_traces.py",
    "models/test_exactness.py",
    "models/test_worker.py",
)
"""Folders and files: programs of others, many faults, many jobs, many models, the documentation's examples."""

SERIAL = ("browser", "clients", "faults", "features", "real", "soak", "integration/test_disconnect.py")
"""Folders and files whose tests measure time, or start so much that another test beside them would be disturbed."""

_TESTS = Path(__file__).parent


def _listed(item: pytest.Item, places: tuple[str, ...]) -> bool:
    path = item.path.relative_to(_TESTS).as_posix() if item.path.is_relative_to(_TESTS) else ""
    return any(path == place or path.startswith(f"{place}/") for place in places)


def assign(item: pytest.Item) -> None:
    """Mark a test with its lane."""
    if _listed(item, DEEP) and not item.get_closest_marker("nightly"):
        item.add_marker(pytest.mark.deep)
    if _listed(item, SERIAL):
        item.add_marker(pytest.mark.serial)
