"""Chromium, and pages that must send requests to their worker only."""

import os
from collections.abc import Iterator
from typing import Protocol

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.helpers import at_rest
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker, running_worker


class Served(Protocol):
    """A worker, or a fleet."""

    @property
    def url(self) -> str:
        """Where it serves HTTP."""


class Open(Protocol):
    """Open a worker's page."""

    def __call__(self, worker: Served, *, beside: Page | None = None) -> Page:
        """In a browser of its own, or in a tab beside another page."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder needs a browser."""
    for item in items:
        if "browser" in item.path.parts:
            item.add_marker(pytest.mark.needs("chromium"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all of a module. Not of the session: playwright's loop runs in this thread while it is there, and tests
    elsewhere want loops of their own."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root; the pages are our own.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=find("chromium"), args=arguments)
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
    """Open a worker's page. It must send requests to no other host, and must handle all errors."""
    browsers: list[BrowserContext] = []
    outside: list[str] = []
    errors: list[str] = []

    def visit(worker: Served, *, beside: Page | None = None) -> Page:
        if beside is None:
            browsers.append(browser.new_context(viewport={"width": 1300, "height": 950}))
        page = (beside.context if beside else browsers[-1]).new_page()
        page.on("request", lambda r: None if r.url.startswith(worker.url + "/") else outside.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(15_000)
        page.goto(worker.url + "/")
        return page

    yield visit
    for one in browsers:
        one.close()
    assert outside == []
    assert errors == []
