"""Tests that need an optional program are skipped before anything starts, and a run names what it skipped and
why."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[2]
TESTS = '''
import pytest

@pytest.fixture
def started(tmp_path_factory):
    """Leaves a trace when it starts."""
    open("started", "a").close()

@pytest.mark.needs("zsh")
def test_with_zsh(started):
    """Never runs here."""

@pytest.mark.needs("fish", "zsh")
def test_with_both(started):
    """Never runs here, either."""

def test_plain():
    """Runs."""
'''
PLUGINS = """
from tests.conftest import pytest_runtest_setup, pytest_terminal_summary  # noqa: F401
"""


def run_without_programs(folder: Path) -> str:
    """What pytest prints about `TESTS` where no optional program is installed."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "conftest.py").write_text(PLUGINS)
    markers = "[pytest]\nmarkers = needs(*programs): x\n"
    (folder / "pytest.ini").write_text(markers)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
        cwd=folder,
        env={"PATH": str(folder), "TESTS_PATH": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_test_without_its_program_is_skipped_before_its_fixtures_start(tmp_path: Path) -> None:
    """And the run names the programs that were missing, with how to get them."""
    printed = run_without_programs(tmp_path)
    assert "1 passed, 2 skipped" in printed
    assert not (tmp_path / "started").exists()
    assert "zsh: 1 skipped (on Debian: apt-get install zsh)" in printed
    assert "fish: 1 skipped (on Debian: apt-get install fish)" in printed


def test_only_programs_that_are_listed_can_be_needed() -> None:
    """One that is missing from the list is neither installed by `make outside` nor hidden by `make without`."""
    with pytest.raises(LookupError):
        programs.find("cobol")


def test_every_program_is_installed_and_hidden_by_the_tools() -> None:
    """`make outside` installs what `make without` hides."""
    installed = (ROOT / "tools/outside.sh").read_text(encoding="utf-8")
    places = [place.relative_to(ROOT).as_posix() for place in programs.PLACES.values()]
    wanted = [*programs.PACKAGES, *(place.removesuffix("/bin/python") for place in places)]
    assert [need for need in wanted if need not in installed] == []
    (hidden,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "tools/without.sh " in line)
    assert set(hidden.split()[1:]) == {*programs.PACKAGES, *programs.PLACES}


@pytest.mark.parametrize(
    "lock",
    [
        "requirements.lock",
        "tests/clients/node/package-lock.json",
        "tests/clients/python/benchmarks.lock",
        "tests/clients/python/requirements.lock",
        "tests/real/gemma3.lock",
    ],
)
def test_locks_have_hashes_and_name_no_index(lock: str) -> None:
    """Packages come from the index that the machine is configured for."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "sha512-" in text or "sha256:" in text
    assert [
        line for line in text.splitlines() if "resolved" in line or "-index-url" in line or ".tgz" in line
    ] == []


def test_what_is_hidden_counts_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make without` hides a library or a model that lies in this folder, and the run says how to get it."""
    monkeypatch.setattr(programs, "PLACES", {"gemma3": tmp_path})
    assert programs.find("gemma3") == str(tmp_path)
    monkeypatch.setattr(programs, "HIDDEN", frozenset({"gemma3"}))
    assert programs.find("gemma3") is None
    assert programs.summary(Counter({"gemma3": 2})) == ["gemma3: 2 skipped (make outside)"]
