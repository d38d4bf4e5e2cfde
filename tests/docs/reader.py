"""A user who types the examples of a page, from top to bottom."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.docs.blocks import ROOT
from tests.docs.shape import is_shown
from tests.helpers import at_rest
from worker_orcd.settings import bundled_model
from worker_orcd.testing.harness import RunningWorker, free_port, wait_until

_WITHIN_SEC = 120.0
_USUAL_PORT = "8080"
_MAY_BE_TYPED = re.compile(
    r"(?:\w+=\S+ )*(?:curl|make run|printf|(?:\S*/)?(?:worker-orcd|python3?)) *(?:\s.*)?", re.DOTALL
)
"""All other programs may change the machine: they belong into NOT_RUN."""
_SERVES = re.compile(
    r"(?:\w+=\S+ )*(?:make run|\S*worker-orcd|\S*python -m worker_orcd\.testing\.serve)(?: serve)?(?: -.*)?"
)
_GOES_ON = re.compile(r"(?:\w+=\S+ )*(?:curl (?:.* )?-N |\S*worker-orcd (?:execute|chat|logs)\b)")
_PATIENCE_SEC = 0.5
"""How long a program of ours is watched."""
_LISTENS = re.compile(r"\S*worker-orcd logs\b")
_SILENCE_SEC = 3.0
"""A program that may print nothing."""
_INTERRUPTED = (0, -signal.SIGINT, 128 + signal.SIGINT)
_PORT = re.compile(r"(?<=--port[ =])\d+")
_SURROUNDINGS = {
    "NO_PROXY": "*",
    "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
_CURL_SETTINGS = "silent\nshow-error\nfail-with-body\nmax-time = 120\nnoproxy = *\n"


@dataclass(frozen=True, slots=True)
class Typed:
    """A command that runs, or has run, and its output."""

    command: str
    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def said(self) -> str:
        """Its output so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def has_begun(self) -> bool:
        """Whether it has printed something; for a job's events, some tokens."""
        said = self.said
        if self.process.poll() is not None:
            return True
        return said.count("event: token") >= 3 if said.startswith("event: started") else said != ""

    def leave(self, patience_sec: float = 0.0) -> bool:
        """Wait for its end, or press Ctrl-C. Returns whether it ended well."""
        try:
            return self.process.wait(patience_sec) == 0
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGINT)
            return self.process.wait(_WITHIN_SEC) in _INTERRUPTED


class Reader:
    """Types commands and runs programs in a folder of their own, with `.venv` and a model in it.

    Args:
        folder: where.
        usual: gives the worker to talk to, as long as the page starts none itself.
    """

    def __init__(self, folder: Path, usual: Callable[[], RunningWorker]) -> None:
        self._folder = folder
        self._usual = usual
        self._workers: dict[str, RunningWorker] = {}
        """By the port on the page."""
        self._own: list[RunningWorker] = []
        self._typed: list[Typed] = []
        self._streams: list[Typed] = []
        """Those that continue in another window."""
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "test.gguf").symlink_to(bundled_model())
        (folder / ".curlrc").write_text(_CURL_SETTINGS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop what goes on. Everything ends well, unless something has failed already."""
        badly = {typed.command: typed.process.returncode for typed in self._streams if not typed.leave()}
        badly |= {f"worker on {own.port}": code for own in self._own if (code := own.stop()) != 0}
        for typed in self._typed:
            typed.leave()
        assert failure[0] is not None or badly == {}
        for worker in set(self._workers.values()) - set(self._own):
            at_rest(worker)

    def types(self, command: str) -> None:
        """A command: a worker is waited for until it is ready, a stream until it has begun, another to its end.

        A stream goes on while the reader types in another window; one of our own programs' is left with Ctrl-C.
        """
        assert _MAY_BE_TYPED.fullmatch(command), f"not for a test to type; say why in NOT_RUN: {command}"
        assert self._own or "/shutdown" not in command, "the worker is not this page's own"
        if _SERVES.fullmatch(command):
            self._serve(command)
            return
        typed = self._start(["bash", "-c", self._here(command)], command)
        if _GOES_ON.match(command):
            self._watch(typed)
        else:
            self._done(typed)
        if "/shutdown" in command:
            self._own[-1].process.wait(_WITHIN_SEC)

    def runs(self, program: str) -> None:
        """A program in Python, to its end; one with tests by pytest."""
        file = self._folder / f"test_example_{len(self._typed)}.py"
        file.write_text(self._here(program), encoding="utf-8")
        by_pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if "def test_" in program else []
        self._done(self._start([sys.executable, "-W", "error", *by_pytest, file.name], program))
        assert "print(" not in program or self._typed[-1].said, f"it says nothing: {program}"

    def saw(self, shown: str) -> bool:
        """Whether a command on this page says what stands there, now or soon."""
        try:
            wait_until(lambda: any(is_shown(typed.said, shown) for typed in self._typed), what="it")
        except TimeoutError:
            return False
        return True

    @property
    def screen(self) -> str:
        """What was typed and the end of what was said, for when something is not as the page says."""
        return "\n".join(f"$ {typed.command}\n{typed.said[-500:]}" for typed in self._typed)

    def _watch(self, typed: Typed) -> None:
        silent = _LISTENS.match(typed.command)
        try:
            within_sec = _SILENCE_SEC if silent else _WITHIN_SEC
            wait_until(lambda: typed.has_begun, within_sec=within_sec, what=f"output of {typed.command}")
        except TimeoutError:
            if not silent:
                raise
        if "worker-orcd" in typed.command:
            assert typed.leave(_PATIENCE_SEC), f"it does not end well\n{self.screen}"
        else:
            self._streams.append(typed)

    def _serve(self, command: str) -> None:
        for own in self._own:
            own.stop()
        said = _PORT.search(command)
        port = free_port()
        recipe = _PORT.sub(str(port), _recipe(command) if command.startswith("make") else command)
        typed = self._start(["bash", "-c", recipe], command, WORKER_ORCD_PORT=str(port))
        worker = RunningWorker(typed.process, port, typed.output)
        self._own.append(worker)
        self._workers[said[0] if said else _USUAL_PORT] = worker.ready()

    def _start(self, arguments: list[str], command: str, **more: str) -> Typed:
        output = self._folder / f"output-{len(self._typed)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                arguments,
                cwd=self._folder,
                env={**os.environ, **_SURROUNDINGS, "HOME": str(self._folder), **self._url(command), **more},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._typed.append(Typed(command, process, output))
        return self._typed[-1]

    def _done(self, typed: Typed) -> None:
        code = typed.process.wait(_WITHIN_SEC)
        assert code == 0, f"exit code {code}\n{self.screen}"

    def _here(self, text: str) -> str:
        """Replace the page's ports by those of the test."""
        for port in sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", text))):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self._worker(port).port}")
        return text

    def _url(self, command: str) -> dict[str, str]:
        """The worker's address, for commands that do not name it."""
        if _SERVES.fullmatch(command) or "worker-orcd" not in command:
            return {}
        return {"WORKER_ORCD_URL": self._worker(_USUAL_PORT).url}

    def _worker(self, port: str) -> RunningWorker:
        if port not in self._workers:
            assert port == _USUAL_PORT, f"the page starts nothing on port {port}"
            self._workers[port] = self._usual()
        return self._workers[port]


def _recipe(command: str) -> str:
    """What `make` would run last; before it comes the set-up, which is not for a test to do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["bash", "-c", f"{command} --dry-run"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]
