"""Runs the command line as users do: as processes, piped or on a terminal of their own."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from worker_orcd.testing import forked
from worker_orcd.testing.harness import Process, RunningWorker, wait_until

MODULE = "worker_orcd"
CLI = [sys.executable, "-m", MODULE]
PATIENCE_SEC = 60
CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[=>78]|\x1b\][^\x07]*\x07")
_ON_ITS_TERMINAL = "import os, sys; os.login_tty(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"


def environment(worker: RunningWorker | None = None, **more: str) -> dict[str, str]:
    """This process's environment without the worker's options, and with the address of `worker`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_ORCD_")}
    address = {"WORKER_ORCD_URL": worker.url} if worker else {}
    return {**plain, "PYTHONIOENCODING": "utf-8", **address, **more}


class Command(forked.ForkedProcess):
    """`worker-orcd` as a process with a pipe for each of its streams, as `subprocess.Popen` has it.

    It is forked, so this says nothing about lazy imports. With `full_disk`, standard output is `/dev/full`.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str], full_disk: bool = False) -> None:
        (its_stdin, stdin), (stdout, its_stdout), (stderr, its_stderr) = (os.pipe() for _ in range(3))
        disk = os.open("/dev/full", os.O_WRONLY)
        streams = (its_stdin, disk if full_disk else its_stdout, its_stderr)
        try:
            super().__init__(MODULE, words, streams=streams, env=env)
        finally:
            for descriptor in (its_stdin, its_stdout, its_stderr, disk):
                os.close(descriptor)
        self.stdin: IO[bytes] = os.fdopen(stdin, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(stdout, "rb")
        self.stderr: IO[bytes] = os.fdopen(stderr, "rb")

    def communicate(self, stdin: bytes = b"") -> tuple[bytes, bytes]:
        """Send `stdin`, close it, and wait for the end. Returns standard output and standard error.

        Raises:
            subprocess.TimeoutExpired: it did not end, and was killed.
        """
        said: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=lambda name=name, stream=stream: said.update({name: stream.read()}))
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))
            if stream is not None
        ]
        for reader in readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError), self.stdin:
            self.stdin.write(stdin)
        try:
            self.wait(PATIENCE_SEC)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for reader in readers:
                reader.join()
            for stream in (self.stdout, self.stderr):
                if stream is not None:
                    stream.close()
        return said.get("stdout", b""), said["stderr"]

    def completed(self, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Send `stdin`, close it, and wait for the end, like `subprocess.run`."""
        stdout, stderr = (said.decode().replace("\r\n", "\n") for said in self.communicate(stdin.encode()))
        return subprocess.CompletedProcess(self.args, self.wait(), stdout, stderr)


def run(
    *words: str, worker: RunningWorker | None = None, stdin: str = "", **env: str
) -> "subprocess.CompletedProcess[str]":
    """Run `worker-orcd` to its end, piped."""
    return Command(words, environment(worker, **env)).completed(stdin)


class Piped:
    """A `worker-orcd` that still runs, its three streams piped."""

    def __init__(
        self, worker: RunningWorker | None, *words: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.process = Command(words, environment(worker, **(env or {})))

    def first_output(self, size: int = 20) -> bytes:
        """Wait for the first bytes of output."""
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def say(self, line: str) -> None:
        """Send a line."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str, str]:
        """Wait for the end. Returns the exit code, the rest of standard output, and all of standard error."""
        said, errors = self.process.communicate()
        return self.process.wait(), said.decode(), errors.decode()


class Terminal:
    """A `worker-orcd`, or another program, in a terminal of its own. What is typed goes through it: Ctrl-C is a key."""

    def __init__(
        self,
        worker: RunningWorker | None,
        *words: str,
        rows: int = 30,
        columns: int = 200,
        program: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._ours, self._its = pty.openpty()
        fcntl.ioctl(self._its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = self.attributes()
        self._text = ""
        self._mark = 0
        self._changed = threading.Condition()
        full_env = environment(worker, TERM="xterm", INPUTRC="/dev/null", **(env or {}))
        self.process: Process
        if program:
            command = [sys.executable, "-c", _ON_ITS_TERMINAL, str(self._its), *program, *words]
            self.process = subprocess.Popen(command, pass_fds=[self._its], env=full_env)
        else:
            streams = (self._its, self._its, self._its)
            self.process = forked.ForkedProcess(MODULE, words, streams=streams, env=full_env, terminal=True)
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if error is not None:
            print(self._text[-4000:])
        os.close(self._its)
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:
                return
            with self._changed:
                self._text += data.decode(errors="replace")
                self._changed.notify_all()

    def attributes(self) -> list[Any]:
        """The terminal's settings, such as echo and line mode."""
        return termios.tcgetattr(self._its)

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._ours, text.encode())

    def shows(self, pattern: str, within_sec: float = PATIENCE_SEC) -> str:
        """Wait until the terminal shows this after the previous match. Returns the text up to it."""

        def look() -> "re.Match[str] | None":
            return re.compile(pattern).search(self.plain()[self._mark :])

        with self._changed:
            if not self._changed.wait_for(look, within_sec):
                raise TimeoutError(f"waited for {pattern!r}, saw {self.plain()[self._mark :][-500:]!r}")
            found = look()
            assert found is not None
            shown = self.plain()[self._mark : self._mark + found.end()]
            self._mark += found.end()
        return shown

    def plain(self) -> str:
        """All output so far, without colours and cursor movements."""
        return _ESCAPES.sub("", self._text)

    def raw(self) -> str:
        """All output so far, unchanged."""
        return self._text

    def ended(self) -> int:
        """Wait for its end. Returns the exit code."""
        return wait_until(
            lambda: (code,) if (code := self.process.poll()) is not None else None,
            within_sec=PATIENCE_SEC,
            what="its end",
        )[0]
