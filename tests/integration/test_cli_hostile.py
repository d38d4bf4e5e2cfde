"""Every command against a worker that answers with escape sequences in each text: terminals only display them."""

import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.hostile_worker import ACTS, EVIL, hostile_worker
from tests.terminal import CLI, CTRL_C, CTRL_D, PATIENCE_SEC, Piped, Terminal, environment, run
from worker_orcd.cli.main import COMMANDS
from worker_orcd.testing.harness import wait_until

OF_THE_CLI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours, and what the watch moves and clears. `ACTS` holds one of its own that looks the same."""
WORDS: dict[str, list[tuple[str, ...]]] = {
    "execute": [("ok",), ("ok", "--json"), ("failed",), ("stopped",), ("refused",)],
    "chat": [("--system", word) for word in ("ok", "failed", "stopped", "refused")],
    "cancel": [("known",), ("known", "--json"), ("unknown",), ("refused",), ("--group", "g")],
    "ps": [(), ("--json",)],
    "logs": [(), ("--json",)],
}
"""What is tried of each command that speaks to a worker. The answer depends on the words."""
ONCE = [(command, *words) for command, tries in WORDS.items() for words in tries if command != "logs"]
ALONE = {"serve", "fleet", "demo", "completion"}
"""They speak to no other worker."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The hostile worker's address."""
    with hostile_worker() as address:
        yield address


def assert_harmless(shown: str, *, lines: bool = False) -> None:
    """Nothing in it controls a terminal but what the CLI itself writes; with `lines`, line ends are allowed too."""
    shown = shown.replace("\r\n", "\n") if lines else shown
    assert "evil" in shown or "unknown" in shown
    assert [act for act in ACTS if act in shown] == []
    rest = OF_THE_CLI.sub("", shown)
    assert [c for c in rest if not c.isprintable() and c not in "\n\N{REPLACEMENT CHARACTER}"] == []


def test_each_command_is_tried() -> None:
    """A new command has to be added here."""
    assert set(WORDS) | ALONE == set(COMMANDS)


@pytest.mark.parametrize("words", ONCE, ids=" ".join)
def test_no_terminal_obeys_a_worker(url: str, words: tuple[str, ...]) -> None:
    """Names, states, messages, receipts and a model's output are displayed, and none of them controls the
    terminal."""
    with Terminal(None, *words, env={"WORKER_ORCD_URL": url}) as terminal:
        if words[0] == "chat":
            terminal.shows("> ")
            terminal.type("hello\n")
            terminal.shows("evil(?s:.*)> ")
            terminal.type(CTRL_D)
        else:
            terminal.shows("evil|job unknown is unknown")
        terminal.ended()
        assert_harmless(terminal.raw(), lines=True)


@pytest.mark.parametrize(
    "words", [("execute", "failed"), ("chat", "--system", "ok"), ("cancel", "known"), ("ps",)], ids=" ".join
)
def test_piped_only_the_output_of_the_model_is_as_it_is(url: str, words: tuple[str, ...]) -> None:
    """Programs get its bytes. All other text is printable, since it may be shown on a terminal later. No
    tracebacks."""
    result = subprocess.run(
        [*CLI, *words],
        input=b"hello\n",
        capture_output=True,
        env=environment(WORKER_ORCD_URL=url),
        timeout=PATIENCE_SEC,
        check=False,
    )
    output, said = result.stdout.decode(), result.stderr.decode()
    if words[0] in ("execute", "chat"):
        assert output == f"{EVIL}\n"
        output = "evil"
    assert_harmless(output + said)
    assert "Traceback" not in said


def test_no_terminal_obeys_a_worker_that_is_watched(url: str) -> None:
    """The table, the receipts of cancelled jobs, and what is listed when the watch ends."""
    with Terminal(None, "ps", "--watch", env={"WORKER_ORCD_URL": url}) as terminal:
        terminal.shows("q quit")
        for key in "cg":
            terminal.type(key)
            terminal.shows("stopped after(?s:.*)q quit")
        terminal.type("q")
        assert terminal.ended() == 0
        assert_harmless(terminal.raw(), lines=True)


@pytest.mark.parametrize("words", WORDS["logs"], ids=" ".join)
def test_no_terminal_obeys_what_a_worker_narrates(url: str, words: tuple[str, ...]) -> None:
    """Neither field names nor values, lines of tracebacks included."""
    with Terminal(None, "logs", *words, env={"WORKER_ORCD_URL": url}) as terminal:
        terminal.shows("evil")
        terminal.shows("waiting for the worker")
        terminal.type(CTRL_C)
        assert terminal.ended() == 0
        assert_harmless(terminal.raw(), lines=True)
    logs = Piped(None, "logs", *words, env={"WORKER_ORCD_URL": url})
    assert logs.process.stdout is not None
    first = logs.process.stdout.readline()
    logs.process.send_signal(signal.SIGINT)
    code, _, said = logs.end()
    assert code == 0
    assert_harmless(first.decode() + said)


def test_no_shell_gets_more_than_words_by_a_worker(url: str) -> None:
    """Ids that are completed are printable."""
    asking: dict[str, Any] = {
        "_WORKER_ORCD_COMPLETE": "complete_bash",
        "COMP_WORDS": "worker-orcd cancel ",
        "COMP_CWORD": "2",
    }

    def completed() -> str | None:
        shown = run(worker=None, WORKER_ORCD_URL=url, **asking).stdout
        return shown if shown.strip() else None  # On a busy machine the worker may not answer in time.

    assert_harmless(wait_until(completed, within_sec=PATIENCE_SEC, what="something to complete"))
