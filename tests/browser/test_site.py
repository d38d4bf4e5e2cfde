"""The documentation's site in a real browser, read from the disk: no server, no network."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.docs.blocks import PAGES, blocks, on_site


@pytest.fixture
def reading(browser: Browser, site: Path) -> Iterator[Page]:
    """A page that may request nothing outside the site's folder, and must have no errors."""
    outside: list[str] = []
    errors: list[str] = []
    context = browser.new_context(viewport={"width": 1300, "height": 950}, color_scheme="light")
    context.on(
        "request",
        lambda asked: None if asked.url.startswith((site.as_uri(), "data:")) else outside.append(asked.url),
    )
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(15_000)
    yield page
    context.close()
    assert outside == []
    assert errors == []


def test_every_page_is_shown_and_its_diagrams_are_drawn(reading: Page, site: Path) -> None:
    """All diagrams of the page, and none is left as text."""
    for name in PAGES:
        reading.goto((site / on_site(name)).as_uri())
        expect(reading.locator("h1").first).to_be_visible()
        diagrams = sum(block.language == "mermaid" for block in blocks(name))
        expect(reading.locator("div.mermaid")).to_have_count(diagrams)
        expect(reading.locator("pre.mermaid")).to_have_count(0)
        for diagram in reading.locator("div.mermaid").all():
            size = diagram.bounding_box()
            assert size is not None
            assert size["height"] > 100, name


def test_it_can_be_searched(reading: Page, site: Path) -> None:
    """From the disk; the results can be opened."""
    reading.goto((site / "index.html").as_uri())
    reading.keyboard.press("/")
    expect(reading.locator(".md-search__input")).to_be_focused()
    reading.keyboard.type("receipts")
    reading.locator(".md-search-result__link").filter(has_text="Records and receipts").first.click()
    expect(reading).to_have_url(re.compile(r"/reference\.html.*#records-and-receipts$"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(reading: Page, site: Path, scheme: Literal["light", "dark"]) -> None:
    """axe-core finds no text with too little contrast, code of each language included, and no link that hides in it."""
    reading.emulate_media(color_scheme=scheme)
    for name in ("quickstart", "openai", "reference", "gpu"):
        reading.goto((site / f"{name}.html").as_uri())
        found = Axe().run(reading, options={"runOnly": ["color-contrast", "link-in-text-block"]})
        assert found.response["passes"]
        assert found.violations_count == 0, found.generate_report()


def test_light_dark_and_narrow(reading: Page, site: Path) -> None:
    """By the system's preference, by the button, and without scrolling sideways."""
    reading.goto((site / "index.html").as_uri())

    def ground() -> str:
        return str(reading.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    reading.get_by_title("Switch to dark").click()
    dark = ground()
    assert light != dark
    reading.evaluate("localStorage.clear()")
    reading.emulate_media(color_scheme="dark")
    reading.reload()
    assert ground() == dark
    reading.set_viewport_size({"width": 360, "height": 700})
    assert reading.evaluate("document.documentElement.scrollWidth") == 360
