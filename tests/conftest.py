"""Shared workers, one process per kind and session, for tests that leave them unchanged; and the built site.

Each test is marked with its lane and its needs here.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests import lanes, programs
from tests.helpers import stop_everything
from tests.tiny import TinyModels
from worker_orcd.testing.harness import RunningWorker, running_worker

# What a shell starts in the background ignores Ctrl-C, what nohup starts ignores hang-ups, and so does all that it
# starts in turn; ours has to hear both. A handler here is the default there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

settings.load_profile("any-machine")  # Of `lanes`.


@pytest.fixture(scope="session")
def scripted_worker() -> Iterator[RunningWorker]:
    """A worker on the scripted engine, with 16 sequences."""
    with running_worker() as worker:
        yield worker


@pytest.fixture(scope="session")
def real_worker() -> Iterator[RunningWorker]:
    """A worker on llama.cpp and the bundled model, with default options but for a longer context."""
    with running_worker("llama", context_length=32768) as worker:
        yield worker


@pytest.fixture(scope="session")
def exact_worker() -> Iterator[RunningWorker]:
    """A worker on the bundled model with `--exact` and eight sequences of 1,024 cells."""
    with running_worker("llama", wait=False, exact=True, parallel=8, context_length=8192) as worker:
        yield worker.ready(within_sec=180)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Files of tiny models of any architecture, made on first use."""
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


_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a missing program is skipped before any of its fixtures starts something."""
    programs.skip_without(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether the test itself passed, for its teardown."""
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Stop the jobs that a failed or skipped test left on shared workers, so that they make no later test fail.
    A test that passes must stop its own jobs."""
    if isinstance(item, pytest.Function) and not item.stash.get(_PASSED, False):
        for worker in item.funcargs.values():
            if isinstance(worker, RunningWorker):
                with contextlib.suppress(httpx2.HTTPError):
                    stop_everything(worker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests that were skipped, by missing program."""
    lines = programs.summary(programs.skipped_without(terminalreporter.stats.get("skipped", [])))
    if lines:
        terminalreporter.section("skipped for lack of a program")
        for line in [*lines, "`make outside` installs all of them where apt-get may."]:
            terminalreporter.write_line(line)


def pytest_unconfigure() -> None:
    """Close the files that `llama_cpp` opens on import and never closes; their ResourceWarnings look like ours."""
    opened = sys.modules.get("llama_cpp._utils")
    if opened is not None:
        opened.outnull_file.close()
        opened.errnull_file.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option to run the files whose tests need a program (`tools/without.sh`)."""
    parser.addoption("--needing", default="", help="only files with tests that need one of these programs")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Do not import files without a test of the lane and group that run."""
    return lanes.ignored(collection_path) or None


class Scopes(LoadFileScheduling):  # type: ignore[misc]  # It has no types.
    """Gives each process the tests of one scope after the other (`lanes.scope`)."""

    def _split_scope(self, nodeid: str) -> str:
        return lanes.scope(nodeid.removeprefix("tests/"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """`--dist loadfile`, but files that share a real worker run in one process."""
    return Scopes(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its lane and its needs, and keep only the files that `--needing` asks for."""
    wanted = set(config.getoption("--needing").split())
    if wanted:
        files = {item.path for item in items if wanted & set(programs.needed(item))}
        config.hook.pytest_deselected(items=[item for item in items if item.path not in files])
        items[:] = [item for item in items if item.path in files]
    if lanes.GROUP == "parallel":
        items.sort(key=lambda item: lanes.turn(item.nodeid.removeprefix("tests/")))
    for item in items:
        lanes.assign(item)
        if {"real_worker", "exact_worker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)
