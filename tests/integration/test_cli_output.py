"""Commands whose output cannot be written: on a full disk, closed, or without a reader. They end with one line and
an exit code, and the job is cancelled."""

import json
import os
import pty
import re
import subprocess
import termios
from collections.abc import Sequence

import pytest

from tests.helpers import SLOW, ended_state, fresh_id
from tests.terminal import CLI, PATIENCE_SEC, Command, environment
from worker_orcd.testing.harness import RunningWorker

LINES = json.dumps({"text": "a\n" * 60, "token_ms": 30})
"""A prompt whose job writes lines for some seconds."""
LOST = re.compile(r"worker-orcd: OUTPUT_LOST: cannot write to standard output: .+\n")
EVERY = [
    ("--help",),
    ("--version",),
    ("serve", "--help"),
    ("completion", "bash"),
    ("execute", '{"text": "a"}'),
    ("execute", '{"text": "a"}', "--json"),
    ("chat",),
    ("chat", "--json"),
    ("cancel", "nobody"),
    ("cancel", "nobody", "--json"),
    ("ps",),
    ("ps", "--json"),
    ("ps", "--watch"),
    ("logs",),
    ("logs", "--json"),
]
"""All that write to standard output; `demo` starts a worker of its own and is left out."""
CLOSED = [("--help",), ("chat",), ("cancel", "nobody"), ("ps",)]
"""Those tried with a closed one, too."""


def shell(
    worker: RunningWorker, words: Sequence[str], redirection: str, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command with a shell redirection. Standard output on a full disk needs no shell."""
    stdin = '{"text": "a"}\n'
    if redirection == ">/dev/full":
        return Command(words, environment(worker, **env), full_disk=True).completed(stdin)
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *CLI, *words],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=environment(worker, **env),
        timeout=PATIENCE_SEC,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "where"),
    [(words, ">/dev/full") for words in EVERY] + [(words, ">&-") for words in CLOSED],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_output_that_cannot_be_written_is_one_line(
    worker: RunningWorker, words: tuple[str, ...], where: str
) -> None:
    """Whether the command writes it, its framework's help, or the watch, which a variable makes treat any output as
    a terminal."""
    result = shell(worker, words, where, FORCE_COLOR="1" if "--watch" in words else "")
    assert LOST.fullmatch(result.stderr), result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"], ids=["full", "closed"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("execute", '{"text": "a"}'), 0),
        (("execute", '{"fail_at": 1}'), 1),
        (("cancel", "nobody"), 0),
        (("cancel", "a b"), 1),
        (("cancel",), 2),
        (("serve", "--port", "80"), 1),
    ],
    ids=str,
)
def test_without_standard_error_the_exit_code_says_it(
    worker: RunningWorker, words: tuple[str, ...], code: int, where: str
) -> None:
    """What cannot be written to standard error is dropped, and none of it appears in the output."""
    result = shell(worker, words, where)
    assert result.returncode == code
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stdout == ("a\n" if code == 0 and words[0] == "execute" else result.stdout)


def test_nothing_at_all_is_open(worker: RunningWorker) -> None:
    """With input, output and errors closed there is still an exit code, and no connection gets a standard
    descriptor."""
    for words in (("execute", "-"), ("chat",), ("ps",), ("cancel", "nobody")):
        result = shell(worker, words, "<&- >&- 2>&-")
        assert (result.stdout, result.stderr) == ("", "")
        assert result.returncode == (0 if words == ("chat",) else 1)


@pytest.mark.parametrize("where", [">/dev/full", ">&-", "| head -1"], ids=["full", "closed", "pipe"])
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
def test_the_job_of_an_output_that_is_lost_is_cancelled(
    worker: RunningWorker, where: str, more: tuple[str, ...]
) -> None:
    """Nobody could read its output."""
    job_id = fresh_id("lost")
    result = shell(worker, ("execute", "--job-id", job_id, LINES, *more), where)
    record = ended_state(worker, job_id)
    assert LOST.fullmatch(result.stderr), result.stderr
    assert record["state"] == "cancelled"


def test_a_cancel_is_done_before_its_answer_is_lost(worker: RunningWorker) -> None:
    """A full disk does not prevent the cancel."""
    stream = worker.execute(fresh_id("lost"), SLOW).tokens_seen(1)
    assert shell(worker, ("cancel", stream.job_id), ">/dev/full").returncode == 1
    assert ended_state(worker, stream.job_id)["state"] == "cancelled"
    stream.finished()


@pytest.mark.parametrize("key", ["", "j"], ids=["by itself", "at a key"])
def test_a_watch_whose_output_is_lost_ends_and_restores_its_terminal(worker: RunningWorker, key: str) -> None:
    """Whether the write of a refresh fails or that of a key's effect."""
    ours, its = pty.openpty()
    before = termios.tcgetattr(its)
    watch = subprocess.Popen(
        [*CLI, "ps", "--watch"],
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(worker, FORCE_COLOR="1"),
    )
    assert watch.stdout is not None
    watch.stdout.read(100)
    watch.stdout.close()
    watch.stdout = None
    os.write(ours, key.encode())
    _, said = watch.communicate(timeout=PATIENCE_SEC)
    after = termios.tcgetattr(its)
    os.close(ours)
    os.close(its)
    assert LOST.fullmatch(said.decode()), said
    assert (watch.returncode, after) == (1, before)
