"""Workers on llama.cpp with the bundled model, one for each mode, shared by all tests of a session."""

from collections.abc import Iterator

import pytest

from worker_orcd.testing.harness import RunningWorker, running_worker


@pytest.fixture(scope="session")
def real_worker() -> Iterator[RunningWorker]:
    """The worker as it comes."""
    with running_worker("llama", context_length=32768) as worker:
        yield worker


@pytest.fixture(scope="session")
def exact_worker() -> Iterator[RunningWorker]:
    """The worker with `--exact`, eight sequences of 1,024 cells."""
    with running_worker("llama", wait=False, exact=True, parallel=8, context_length=8192) as worker:
        yield worker.ready(within_sec=180)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the real model."""
    for item in items:
        if "tests/real/" in item.nodeid:
            item.add_marker(pytest.mark.real)
