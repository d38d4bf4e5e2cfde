"""Workers to test against: one process for each kind and session, for tests that leave it as they found it."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from worker_orcd.testing.harness import RunningWorker, running_worker

# How fast examples are made says something of the machine only, and these machines are shared.
settings.register_profile(
    "any-machine", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")


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
