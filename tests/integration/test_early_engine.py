"""The first engine, which is started before the server is imported."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from worker_orcd.child_process import free_port, wait_until
from worker_orcd.cli.ahead import EngineAhead
from worker_orcd.protocol.framing import encode
from worker_orcd.protocol.messages import FromEngine, Load, LoadFailed
from worker_orcd.settings import Settings
from worker_orcd.supervisor.early import LLAMA_ENGINE, WAITING, EarlyEngine, environment
from worker_orcd.supervisor.engine import Death
from worker_orcd.supervisor.load_order import loading
from worker_orcd.supervisor.local import LocalEngine, start_process
from worker_orcd.testing.harness import running_worker


def load_of(path: Path) -> Load:
    """The order to load this file."""
    return Load(str(path), "early", None, 1, 256, exact=False, threads=1, log_format="json")


def early_with(path: Path) -> EarlyEngine:
    """An early engine that has the order to load this file."""
    early = EarlyEngine.start()
    early.connection.sendall(encode(load_of(path)))
    return early


class Listener:
    """Keeps what an engine sends."""

    def __init__(self) -> None:
        self.messages: list[FromEngine] = []
        self.death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    def on_message(self, message: FromEngine) -> None:
        """Keep it."""
        self.messages.append(message)

    def lost(self, death: Death) -> None:
        """The last thing."""
        self.death.set_result(death)


def test_what_it_sent_before_it_was_adopted_is_not_lost(tmp_path: Path) -> None:
    """Also when it is dead by then: its messages come first, and then its death."""

    early = early_with(tmp_path / "missing.gguf")
    os.waitid(os.P_PID, early.process.pid, os.WEXITED | os.WNOWAIT)

    async def adopted() -> None:
        listener = Listener()
        engine = await LocalEngine.adopt(early, listener)
        death = await asyncio.wait_for(listener.death, 60)
        assert [type(message) for message in listener.messages] == [LoadFailed]
        assert (death.pid, death.exit_code) == (engine.pid, 1)

    asyncio.run(adopted())


def test_it_ends_when_the_worker_cannot_start(tmp_path: Path) -> None:
    """At once, whatever it is doing."""
    early = early_with(tmp_path / "missing.gguf")
    early.end()
    assert early.process.returncode is not None


def test_it_ends_before_it_knows_what_to_load() -> None:
    """At once, as when the options are wrong."""
    early = EarlyEngine.start()
    early.end()
    assert early.process.returncode is not None


@pytest.mark.parametrize("reaped", [False, True])
def test_one_that_is_dead_already_is_ended_without_a_word(reaped: bool) -> None:
    """As if its library could not be loaded: the server then starts another one, and reports the reason."""
    early = EarlyEngine.start()
    os.kill(early.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, early.process.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        assert early.process.returncode == -signal.SIGKILL
    assert loading(early, Settings()) is None
    assert early.process.returncode == -signal.SIGKILL


def test_one_that_cannot_be_started_leaves_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its socket nor its memory files."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(OSError, match="nonexistent"):
            EarlyEngine.start()
    assert psutil.Process().num_fds() == before


def test_a_library_that_cannot_be_loaded_is_reported_in_one_line(tmp_path: Path) -> None:
    """By the server, after its own attempt."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('none here')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "worker_orcd", "--port", str(free_port())]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "worker-orcd: MODEL_LOAD_FAILED: " in ended.stderr.splitlines()[-1]
    assert "load_order" not in ended.stderr


def test_wrong_options_leave_no_engine_behind(tmp_path: Path) -> None:
    """Nor does a file that is no model: when the worker has exited, its engine is gone."""
    (tmp_path / "none.gguf").write_text("nothing")
    for wrong in (("--parallel", "0"), ("--model", str(tmp_path / "none.gguf"))):
        command = [sys.executable, "-m", "worker_orcd", *wrong]
        marked = {**os.environ, "WORKER_ORCD_EARLY_TEST": str(tmp_path)}
        ended = subprocess.run(command, env=marked, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1
        assert not [process for process in psutil.process_iter() if _is_marked(process, str(tmp_path))]


def _is_marked(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("WORKER_ORCD_EARLY_TEST") == mark
    return False


@pytest.mark.parametrize("arguments", [[], ["serve"], ["--port", "9000"], ["serve", "--exact"]])
def test_it_starts_before_the_command_line_is_parsed(arguments: list[str]) -> None:
    """And ends if the command line turns out to be wrong."""
    with EngineAhead(arguments) as ahead:
        engine = ahead.take()
        assert engine is not None
        assert engine.process.returncode is None
    engine.end()
    before = psutil.Process().children()
    with EngineAhead(arguments):
        (child,) = set(psutil.Process().children()) - set(before)
    assert not child.is_running()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["serve", "--help"], ["cancel", "job-1"], ["fleet", "--workers", "2"]],
)
def test_what_does_not_serve_starts_none(arguments: list[str]) -> None:
    """Help, client commands, and a fleet, whose workers start their own."""
    with EngineAhead(arguments) as ahead:
        assert ahead.take() is None


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=1", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_an_engine_asks_for_huge_pages_unless_the_user_says_otherwise(
    own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user has set for glibc stays, in the first engine as in the spare one."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    assert environment()["GLIBC_TUNABLES"] == expected
    assert all(expected.encode() in shown for shown in _environments())


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}], ids=str)
def test_compute_threads_soon_sleep_unless_the_user_says_otherwise(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the user's for how OpenMP's threads wait takes the place of ours, in both engines."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    expected = own or WAITING
    for shown in _environments():
        variables = dict(one.split("=", 1) for one in shown.decode().split(":") if "=" in one)
        assert {name: variables[name] for name in variables if name in WAITING} == expected


def _environments() -> list[bytes]:
    """What the first engine has, and the spare one."""
    first = EarlyEngine.start()
    shown = [_environment_of(first)]
    first.end()

    async def next_one() -> bytes:
        engine = await start_process()
        shown = _environment_of(engine)
        engine.process.kill()
        await engine.process.wait()
        engine.disconnect()
        return shown

    return [*shown, asyncio.run(next_one())]


def _environment_of(engine: EarlyEngine) -> bytes:
    """What the engine's process has. glibc separates its tunables by NULs there."""
    process = psutil.Process(engine.process.pid)
    wait_until(lambda: LLAMA_ENGINE in process.cmdline(), within_sec=10, what="the engine's program")
    return Path(f"/proc/{process.pid}/environ").read_bytes().replace(b"\0", b":")


def test_a_store_that_is_off_keeps_nothing() -> None:
    """Its file stays empty, for the first engine and for each that replaces it."""
    with running_worker("llama", context_length=512, parallel=1, prefix_cache="off") as worker:
        assert worker.health()["prefix_store_bytes"] == 0


def test_a_worker_starts_no_other_one_beside_it() -> None:
    """Its engine is the one that was started early."""
    with running_worker("llama", context_length=512, parallel=1) as worker:
        children = psutil.Process(worker.process.pid).children()
        assert [child.pid for child in children] == [worker.engine_pid]
