"""Shell completion: what shells request, and the shells themselves."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import SLOW
from tests.programs import find
from tests.terminal import PATIENCE_SEC, Terminal, environment, run
from worker_orcd.testing.harness import RunningWorker

COMMANDS = ["serve", "fleet", "execute", "chat", "cancel", "ps", "logs", "demo", "completion"]


def completed(*words: str, worker: RunningWorker | None = None, **env: str) -> list[str]:
    """Completions of the last word, as bash requests them."""
    asked = {
        "COMP_WORDS": "\n".join(["worker-orcd", *words]),
        "COMP_CWORD": str(len(words)),
        "_WORKER_ORCD_COMPLETE": "complete_bash",
    }
    result = run(worker=worker, **asked, **env)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


def with_our_program() -> dict[str, str]:
    """A PATH on which `worker-orcd` is this checkout's."""
    folder = Path(sys.executable).parent
    assert (folder / "worker-orcd").exists()
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


# What shells ask.


def test_commands_are_completed() -> None:
    """All commands, or those with the typed prefix."""
    assert completed("") == COMMANDS
    assert completed("c") == ["chat", "cancel", "completion"]


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_every_command_are_completed(command: str) -> None:
    """Though a command's module is loaded only when it is used."""
    offered = set(completed(command, "--"))
    shown = run(command, "--help").stdout
    assert "--help" in offered
    assert {word for word in offered if f" {word} " not in shown and f" {word}\n" not in shown} == set()
    wanted = {"serve": "--model", "fleet": "--workers", "demo": "--json", "completion": "--help"}.get(
        command, "--url"
    )
    assert wanted in offered


def test_without_a_command_options_are_those_of_serve() -> None:
    """As when the program is run, also after a first option."""
    assert completed("--po") == ["--port", "--pooling"]
    assert completed("--port", "9000", "--mo") == ["--model", "--model-alias"]
    assert {"--version", "--model"} <= set(completed("--"))


def test_values_are_completed() -> None:
    """For options with a fixed set of values."""
    assert completed("execute", "--template", "") == ["auto", "none"]
    assert completed("logs", "--level", "w") == ["WARN"]
    assert completed("completion", "") == ["bash", "zsh", "fish"]


def test_live_jobs_are_completed_from_the_worker(worker: RunningWorker) -> None:
    """For `cancel`, the live ones and their groups; for `logs`, also those that have ended."""
    worker.execute("tab-ended", max_tokens=1).finished()
    streams = [worker.execute(f"tab-{place}", SLOW, group="tab-group").started() for place in (1, 2)]
    assert completed("cancel", "tab-", worker=worker) == ["tab-1", "tab-2"]
    assert completed("cancel", "--url", worker.url, "tab-2") == ["tab-2"]
    assert completed("cancel", "--group", "tab", worker=worker) == ["tab-group"]
    assert completed("logs", "--job", "tab-", worker=worker) == ["tab-1", "tab-2", "tab-ended"]
    worker.client.post("/cancel", json={"group": "tab-group"})
    for stream in streams:
        stream.finished()


def test_a_worker_that_is_not_there_or_does_not_answer_completes_nothing() -> None:
    """Silently, and soon."""
    assert completed("cancel", "", WORKER_ORCD_URL="http://127.0.0.1:1") == []
    assert completed("cancel", "", WORKER_ORCD_URL="nonsense") == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert completed("cancel", "", WORKER_ORCD_URL=address) == []
        assert time.monotonic() - began < 8, "the program starts, and waits half a second"


def test_completion_of_another_shell_is_wrong_usage() -> None:
    """Exit code 2, and a list of the shells that there are."""
    result = run("completion", "tcsh")
    assert (result.returncode, result.stdout) == (2, "")
    assert "'bash', 'zsh', 'fish'" in result.stderr


# The shells.


def cancels_by_tabs(terminal: Terminal, begun: str, job_id: str) -> None:
    """Complete a command, a job id and an option with Tab, run the cancel, and leave the shell."""
    terminal.type("worker-orcd canc\t")
    terminal.shows("cancel ")
    terminal.type(f"{begun}\t")
    terminal.shows(f"{job_id} ")
    terminal.type("--js\t")
    terminal.shows("--json ")
    terminal.type("\n")
    terminal.shows('"kv_cells_after": 0')
    terminal.type("exit\n")
    terminal.ended()


def test_bash_completes_once_it_has_our_script(worker: RunningWorker) -> None:
    """Installed as documented: eval "$(worker-orcd completion bash)"."""
    stream = worker.execute("tab-bash", SLOW).started()
    shell = [shutil.which("bash") or "bash", "--norc", "--noprofile", "-i"]
    with Terminal(worker, program=shell, env={**with_our_program(), "PS1": "$ "}) as terminal:
        terminal.shows(r"\$ ")
        terminal.type('eval "$(worker-orcd completion bash)"; echo read""y\n')
        terminal.shows("ready")
        cancels_by_tabs(terminal, "tab-b", "tab-bash")
    stream.finished()


@pytest.mark.needs("zsh")
def test_zsh_completes_once_it_has_our_script(worker: RunningWorker) -> None:
    """Installed in the same way, with zsh's own completion system loaded."""
    stream = worker.execute("tab-zsh", SLOW).started()
    with Terminal(worker, "-f", "-i", program=[find("zsh") or ""], env=with_our_program()) as terminal:
        terminal.type("autoload -U compinit; compinit -u -D; PS1='> '\n")
        terminal.type('eval "$(worker-orcd completion zsh)"; echo read""y\n')
        terminal.shows("ready")
        cancels_by_tabs(terminal, "tab-z", "tab-zsh")
    stream.finished()


@pytest.mark.needs("fish")
def test_fish_completes_once_it_has_our_script(worker: RunningWorker, tmp_path: Path) -> None:
    """Completions have descriptions."""
    stream = worker.execute("tab-fish", SLOW).started()

    def offered(line: str) -> list[str]:
        ask = f"worker-orcd completion fish | source; complete -C '{line}'"
        result = subprocess.run(
            [find("fish") or "", "--no-config", "-c", ask],
            capture_output=True,
            text=True,
            env=environment(worker, **with_our_program(), HOME=str(tmp_path)),
            timeout=PATIENCE_SEC,
            check=True,
        )
        return result.stdout.splitlines()

    assert offered("worker-orcd canc") == ["cancel\tCancel a job and show its receipt."]
    assert offered("worker-orcd cancel tab-f") == ["tab-fish\trunning, decode"]
    assert offered("worker-orcd cancel --js") == ["--json\tthe response and the job's record, as JSON"]
    worker.cancel("tab-fish")
    stream.finished()
