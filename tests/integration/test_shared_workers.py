"""A test that fails or skips halfway does not make the tests after it fail on a worker that they share."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest
from tests.helpers import SLOW, at_rest
from worker_orcd.testing.harness import running_worker

@pytest.fixture(scope="session")
def shared():
    with running_worker() as worker:
        yield worker

@pytest.fixture
def worker(shared):
    yield shared
    at_rest(shared)

def test_fails_halfway(worker):
    worker.execute("left-by-a-failure", SLOW).started()
    assert False

def test_skips_halfway(worker):
    worker.execute("left-by-a-skip", SLOW).started()
    pytest.skip("too late")

def test_passes(worker):
    assert worker.health()["jobs_running"] == 0
"""
HOOKS = "from tests.conftest import pytest_runtest_makereport, pytest_runtest_teardown\n"


def test_jobs_that_a_failed_or_skipped_test_left_are_stopped(tmp_path: Path) -> None:
    """One failure, one skip, no error in a teardown, and the next test passes."""
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(HOOKS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert "1 failed, 1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "error" not in done.stdout.splitlines()[-1], done.stdout
