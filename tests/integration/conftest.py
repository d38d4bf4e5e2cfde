"""Workers for tests over HTTP. Each test must leave its worker at rest: nothing running, waiting, or held."""

from collections.abc import Iterator

import pytest

from tests.helpers import at_rest
from tests.relay import Relay
from worker_orcd.testing.harness import RunningWorker, running_worker


@pytest.fixture
def worker(scripted_worker: RunningWorker) -> Iterator[RunningWorker]:
    """A worker that other tests share; a test must not damage it."""
    yield scripted_worker
    at_rest(scripted_worker)


@pytest.fixture(scope="session")
def narrow_session() -> Iterator[RunningWorker]:
    """A worker for one job at a time; two may wait."""
    with running_worker(parallel=1, max_queue=2) as narrow:
        yield narrow


@pytest.fixture
def narrow(narrow_session: RunningWorker) -> Iterator[RunningWorker]:
    """A shared worker on which jobs wait: one runs at a time, two may wait."""
    yield narrow_session
    at_rest(narrow_session)


@pytest.fixture(scope="session")
def battered_session() -> Iterator[RunningWorker]:
    """A worker whose engine dies repeatedly."""
    with running_worker(parallel=2) as battered:
        yield battered


@pytest.fixture
def battered(battered_session: RunningWorker) -> Iterator[RunningWorker]:
    """A worker whose engine a test may kill or stop: two jobs at a time. It must recover by itself."""
    yield battered_session.ready()
    at_rest(battered_session)


@pytest.fixture
def relay(worker: RunningWorker) -> Iterator[Relay]:
    """Between client and worker."""
    made = Relay(worker.port)
    yield made
    made.close()


@pytest.fixture
def blind(worker: RunningWorker) -> Iterator[Relay]:
    """A proxy that hides disconnects from the worker."""
    made = Relay(worker.port, hides_leaving=True)
    yield made
    made.close()
