"""Makes the README's pictures from a real worker with the bundled model: `make pictures`.

The page of the console is photographed in Chromium; the output of real commands in a terminal becomes an SVG. Writes
docs/assets/console.png and docs/assets/terminal.svg.
"""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect, sync_playwright
from rich.console import Console
from rich.text import Text

from tests.programs import find
from worker_orcd.testing.harness import RunningWorker, running_worker

ASSETS = Path(__file__).parent.parent / "docs" / "assets"
PROMPT = "Write a long story about a lighthouse keeper."
COLUMNS = 100
_SOME_TEXT = re.compile(r".{80}", re.DOTALL)
_PATIENCE_MS = 240_000
"""The machine may be busy."""
_FONT_FACE = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""Fonts that a viewer would fetch from elsewhere."""


def photograph_console(worker: RunningWorker, target: Path) -> None:
    """Save the console's page with one stream running and one that was stopped, with its receipt."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=find("chromium"), args=arguments)
        page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
        page.set_default_timeout(_PATIENCE_MS)
        page.goto(worker.url + "/")
        panes = page.get_by_role("article", name="Prompt")
        page.get_by_role("button", name="Add another prompt").click()
        for number in (0, 1):
            pane = panes.nth(number)
            pane.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
            pane.get_by_role("button", name="Run").click()
            expect(pane.get_by_role("log")).to_have_text(_SOME_TEXT, timeout=_PATIENCE_MS)
        panes.nth(1).get_by_role("button", name="Stop").click()
        expect(panes.nth(1).get_by_role("status")).to_have_text("cancelled (client)", timeout=_PATIENCE_MS)
        expect(page.locator("#jobs")).to_contain_text("cancelled", timeout=_PATIENCE_MS)
        page.screenshot(path=target)
        browser.close()


def in_terminal(command: str, url: str, interrupt_when: Callable[[str], bool] = lambda _: False) -> str:
    """Run a worker-orcd command on a terminal of its own. Returns what it wrote, with its escape sequences.

    Args:
        command: what follows `worker-orcd`.
        url: the worker's address.
        interrupt_when: given the output so far, whether to press Ctrl-C now; it is pressed once.
    """
    here, there = pty.openpty()
    surroundings = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "WORKER_ORCD_URL": url}
    process = subprocess.Popen(  # noqa: S603  # our own program
        [sys.executable, "-m", "worker_orcd", *command.split("|")],
        stdin=there,
        stdout=there,
        stderr=there,
        env=surroundings,
        start_new_session=True,
    )
    os.close(there)
    output, interrupted = b"", False
    while True:
        try:
            piece = os.read(here, 65536)
        except OSError:  # Its end of the terminal is closed.
            break
        if not piece:
            break
        output += piece
        if not interrupted and interrupt_when(output.decode(errors="replace")):
            process.send_signal(signal.SIGINT)
            interrupted = True
    process.wait()
    os.close(here)
    return output.decode(errors="replace").replace("\r\n", "\n")


def draw_terminal(worker: RunningWorker, target: Path) -> None:
    """Save a job that Ctrl-C cancels, `ps`, and a second cancel, as a terminal shows them."""
    shown = (
        (f"execute|{PROMPT}|--job-id|story-1|--max-tokens|400", lambda text: len(text) > 5 * COLUMNS),
        ("ps", lambda _: False),
        ("cancel|story-1", lambda _: False),
    )
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for command, interrupt_when in shown:
        words = [f'"{word}"' if " " in word else word for word in command.split("|")]
        console.print(Text(f"$ worker-orcd {' '.join(words)}", style="bold"))
        console.print(Text.from_ansi(in_terminal(command, worker.url, interrupt_when).rstrip()))
        console.print()
    target.write_text(_FONT_FACE.sub("", console.export_svg(title="worker-orcd")), encoding="utf-8")


if __name__ == "__main__":
    with running_worker("llama") as shown_worker:
        draw_terminal(shown_worker, ASSETS / "terminal.svg")
    with running_worker("llama") as shown_worker:
        photograph_console(shown_worker, ASSETS / "console.png")
