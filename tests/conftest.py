"""Workers to test against: one process for each kind and session, for tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from worker_orcd.testing.harness import RunningWorker, running_worker


@pytest.fixture(scope="session")
def scripted_worker() -> Iterator[RunningWorker]:
    """The scripted engine, 16 sequences."""
    with running_worker() as worker:
        yield worker


@pytest.fixture(scope="session")
def real_worker() -> Iterator[RunningWorker]:
    """llama.cpp with the bundled model."""
    with running_worker("llama") as worker:
        yield worker
