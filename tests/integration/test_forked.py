"""Forked processes behave like exec'ed ones, so tests do not depend on how a worker was started."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers import is_gone
from worker_orcd.testing import forked
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

REPORTED = """
import os, signal, sys
print(sys.argv[1:], os.environ.get("SAID"), os.getcwd(), sys.stdin.read())
print("wrong", file=sys.stderr)
print(sorted(map(int, os.listdir("/proc/self/fd")))[:-1], signal.getsignal(signal.SIGTERM).name)
"""


def started(code: str, said: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> forked.ForkedProcess:
    """A module of this code, all that it says in a file."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", dir=said.parent, delete=False) as file:
        file.write(code)
    monkeypatch.chdir(said.parent)
    with said.open("wb") as stdout, Path(os.devnull).open("rb") as stdin:
        streams = (stdin.fileno(), stdout.fileno(), stdout.fileno())
        return forked.ForkedProcess(Path(file.name).stem, ["a b", "--c"], streams=streams, env=dict(env))


def test_it_has_its_own_arguments_environment_streams_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It inherits neither descriptors nor signal handlers from the process that forked it."""
    said = tmp_path / "said"
    process = started(REPORTED, said, monkeypatch, SAID="ö")
    assert process.wait(30) == 0
    first, *rest = sorted(said.read_text().splitlines())
    assert first == "['a b', '--c'] ö " + str(tmp_path) + " "
    assert rest == ["[0, 1, 2] SIG_DFL", "wrong"]


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os; os._exit(9)", 9),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_its_end_is_known(code: str, ended: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the exit code of a program, an exception or a signal."""
    process = started(code, tmp_path / "said", monkeypatch)
    assert process.wait(30) == process.poll() == process.returncode == ended


def test_waiting_for_it_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for other processes; a signal reaches it."""
    process = started("import time; time.sleep(600)", tmp_path / "said", monkeypatch)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


def test_a_killed_worker_takes_its_forked_engine_with_it() -> None:
    """The engine is a child of the worker, in a process group of its own, and cannot outlive it."""
    with running_worker() as worker:
        assert isinstance(worker.process, forked.ForkedProcess)
        engine = worker.engine_pid
        assert os.getpgid(engine) == engine != os.getpgid(worker.process.pid)
        worker.process.kill()
        assert worker.process.wait(30) == -signal.SIGKILL
        wait_until(lambda: is_gone(engine), what="an engine that is gone")


def test_an_engine_that_dies_is_forked_again(battered: RunningWorker) -> None:
    """Its death is reported with its signal."""
    engine = battered.engine_pid
    battered.signal_engine(signal.SIGKILL)
    battered.narrated("engine_lost", engine_pid=engine, signal="SIGKILL")
    battered.ready()
    assert battered.engine_pid != engine
    assert is_gone(engine)


def test_with_options_for_python_a_worker_gets_an_interpreter_of_its_own() -> None:
    """A forked process could not apply them any more."""
    with running_worker(env={"PYTHONOPTIMIZE": "1"}) as worker:
        assert isinstance(worker.process, subprocess.Popen)
        assert Path(f"/proc/{worker.process.pid}/exe").resolve() == Path(sys.executable).resolve()
