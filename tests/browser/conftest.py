"""Chromium, and pages that must not ask anybody but their worker."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.helpers import at_rest
from worker_orcd.testing.harness import RunningWorker, running_worker

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

Open = Callable[[RunningWorker], Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser there is nothing to see."""
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason="needs Chromium (on Debian: apt-get install chromium)")
        for item in items:
            if "browser" in item.path.parts:
                item.add_marker(skip)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all of a module. Not of the session: playwright's loop runs in this thread while it is there, and tests
    elsewhere want loops of their own."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root; the pages are our own.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="session")
def _shown() -> Iterator[RunningWorker]:
    with running_worker(parallel=4) as shown:
        yield shown


@pytest.fixture
def shown(_shown: RunningWorker) -> Iterator[RunningWorker]:
    """A worker on the scripted engine."""
    yield _shown.ready()
    at_rest(_shown)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Open a worker's page. It must ask nobody else, and nothing may go wrong on it that it does not handle."""
    pages: list[Page] = []
    outside: list[str] = []
    errors: list[str] = []

    def visit(worker: RunningWorker) -> Page:
        page = browser.new_page(viewport={"width": 1300, "height": 950})
        page.on("request", lambda r: None if r.url.startswith(worker.url + "/") else outside.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(15_000)
        page.goto(worker.url + "/")
        pages.append(page)
        return page

    yield visit
    for page in pages:
        page.close()
    assert outside == []
    assert errors == []
