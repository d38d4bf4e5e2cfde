"""Workers to test against: one process for each kind and session, for tests that leave it as they found it.

And the documentation's site, built once.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.tiny import TinyModels
from worker_orcd.testing.harness import RunningWorker, running_worker

# What a shell starts in the background ignores Ctrl-C, what nohup starts ignores hang-ups, and so does all that it
# starts in turn; ours has to hear both. A handler here is the default there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

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
    """llama.cpp with the bundled model, as the worker comes."""
    with running_worker("llama", context_length=32768) as worker:
        yield worker


@pytest.fixture(scope="session")
def exact_worker() -> Iterator[RunningWorker]:
    """The same with `--exact`, eight sequences of 1,024 cells."""
    with running_worker("llama", wait=False, exact=True, parallel=8, context_length=8192) as worker:
        yield worker.ready(within_sec=180)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Files of tiny models of any architecture, made when they are wanted."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the documentation's site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    root = Path(__file__).parents[1]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=root, env=quiet, capture_output=True, text=True, timeout=120, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who uses one of these needs the real model."""
    for item in items:
        if {"real_worker", "exact_worker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)
