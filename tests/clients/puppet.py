"""Client libraries in processes of their own: a test makes them send requests, disconnect and stop.

A process reads a line of JSON for each call, `{"id", "call": "whole" | "stream", "prompt", "headers", "leave_after",
"options"}`, and `{"stop": id}` to stop that call as the library's users stop one (a cancelled task, an AbortSignal).
The call `run` runs the file that its id names. It prints one line for each call that ends, `{"call": id, "text"}` or
`{"call": id, "raised", "message"}`, and no other that begins with a brace.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import programs
from worker_orcd.testing.harness import wait_until

HERE = Path(__file__).parent
_START_SEC = 240.0
_CALL_SEC = 120.0
OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "AI_SDK_LOG_WARNINGS": "false",
}
"""These libraries would send telemetry and fetch data."""


def environment() -> dict[str, str]:
    """The variables for a program that uses one of these libraries."""
    return {**os.environ, **OFFLINE}


class Puppet:
    """A library process, and the calls that it has made."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._said: list[dict[str, Any]] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._said.append(json.loads(line))
            else:
                sys.stderr.write(line)

    def _tell(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _find(self, within_sec: float, key: str, value: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = next((said for said in self._said if said.get(key) == value), None)
            if found is None and not self._reading.is_alive():
                raise RuntimeError(f"the client exited with {self._process.wait()}: {self._said}")
            return found

        return wait_until(look, within_sec=within_sec, what=f"{key} {value}")

    def ready(self, name: str) -> None:
        """Wait until the library is loaded."""
        self._find(_START_SEC, "ready", name)

    def ask(
        self,
        call: str,
        name: str,
        prompt: str,
        *,
        leave_after: int | None = None,
        job_id: bool = True,
        **options: Any,
    ) -> None:
        """Have it ask.

        Args:
            call: `whole` or `stream`.
            name: the call's, and its job's.
            prompt: for the model.
            leave_after: so many pieces of text are read of a stream, then it is left.
            job_id: whether the request says how its job is called.
            options: the library's own, for this call.
        """
        headers = {"X-Job-Id": name} if job_id else {}
        self._tell(
            id=name, call=call, prompt=prompt, headers=headers, leave_after=leave_after, options=options
        )

    def run(self, program: str, folder: Path) -> None:
        """Make it run a program to its end, from a file in a folder of its own."""
        (folder / "node_modules").symlink_to(programs.PLACES["node-clients"])
        file = folder / "example.mjs"  # Python takes any name.
        file.write_text(program, encoding="utf-8")
        self._tell(id=str(file), call="run")
        assert self.outcome(str(file)) == {"text": ""}

    def stop(self, name: str) -> None:
        """Make it stop a call."""
        self._tell(stop=name)

    def outcome(self, name: str) -> dict[str, Any]:
        """Wait until a call has ended, and return what it printed."""
        return {key: value for key, value in self._find(_CALL_SEC, "call", name).items() if key != "call"}


@contextmanager
def running_puppet(command: Sequence[str], name: str, url: str) -> Iterator[Puppet]:
    """A process of a library, from its start to its end."""
    with subprocess.Popen(
        [*command, name, url],
        cwd=HERE,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            puppet = Puppet(process)
            puppet.ready(name)
            yield puppet
        finally:
            process.kill()


def python() -> list[str]:
    """The command for the libraries for Python."""
    return [programs.find("python-clients") or "", "python/clients.py"]


def node() -> list[str]:
    """The command for the libraries for Node."""
    return [programs.find("node") or "", "node/clients.mjs"]
