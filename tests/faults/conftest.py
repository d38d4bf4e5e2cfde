"""How often each fault is tried: a sample in `make test`, many in `make faults`; and workers that may be harmed."""

import os
from collections.abc import Iterator

import pytest

from tests.faults.ledger import LEDGER, Ledger
from tests.helpers import at_rest
from worker_orcd.testing.harness import RunningWorker, running_worker

FAULT_TRIALS = int(os.environ.get("FAULT_TRIALS", "1"))
"""Times the sample."""


@pytest.fixture
def trials() -> int:
    """How many times the sample is run."""
    return FAULT_TRIALS


@pytest.fixture
def ledger() -> Ledger:
    """Where faults and checks are counted."""
    return LEDGER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts."""
    if LEDGER.streams:
        terminalreporter.section("faults")
        for line in LEDGER.report():
            terminalreporter.write_line(line)


@pytest.fixture(scope="module")
def _victim() -> Iterator[RunningWorker]:
    with running_worker() as victim:
        yield victim


@pytest.fixture
def victim(_victim: RunningWorker) -> Iterator[RunningWorker]:
    """A worker on the scripted engine whose engine may be harmed; it must come back by itself."""
    yield _victim.ready()
    at_rest(_victim)
