"""`worker-orcd demo` on the real model."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.real
@pytest.mark.timeout(300)
def test_demo_shows_every_promise_kept() -> None:
    """It exits 0, and shows the 202, CANCELLED, the times, the cells, and the next job's first token."""
    result = subprocess.run(
        [sys.executable, "-m", "worker_orcd", "demo"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=280,
        check=False,
    )
    shown = result.stdout
    assert result.returncode == 0, shown + result.stderr
    assert result.stderr == ""
    assert "✗" not in shown
    assert '✓ the cancel: 202 {"status": "cancelling", "job_id": "demo-story"}' in shown
    assert "✓ a second cancel of the same job: 202" in shown
    assert '✓ the cancel: 202 {"status": "cancelling", "job_id": "demo-never-was"}' in shown
    assert shown.count('"code": "CANCELLED"') == 2
    times = (
        r"stopped after [\d.]+ ms, freed after [\d.]+ ms, terminal event after [\d.]+ ms; KV cells \d+ → 0"
    )
    assert len(re.findall(times + r", \d+ kept for later jobs \(decode,", shown)) == 1
    assert len(re.findall(times + r" \(prefill,", shown)) == 1
    assert len(re.findall(r"KV cells in /health: \d+ before, 0 after", shown)) == 2
    assert re.search(r"next job's first token came after \d+ ms; on the idle worker, before: \d+ ms", shown)
    assert "✓ its exit code: 0" in shown
