"""Runs a real worker process, follows its streams, and waits for events instead of sleeping.

Streams are read with httpx2 instead of the client library, so that a bug of the library cannot hide a bug of the
worker.
"""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import httpx2

from worker_orcd.child_process import Process, end, free_port, wait_until
from worker_orcd.testing import forked

__all__ = [
    "EngineKind",
    "Process",
    "Received",
    "RunningWorker",
    "Stream",
    "free_port",
    "running_worker",
    "wait_until",
]

EngineKind = Literal["scripted", "llama"]
_MODULES: dict[EngineKind, str] = {"scripted": "worker_orcd.testing.serve", "llama": "worker_orcd.cli.main"}
_FORKED = "worker_orcd.testing.forked_serve"
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without certificates, because only plain HTTP is used, and loading certificates takes 70 ms."""


@dataclass(frozen=True, slots=True)
class Received:
    """One received event. `at` is `time.monotonic()` of its arrival; `id` is `<incarnation>.<number>`."""

    at: float
    id: str
    event: str
    data: dict[str, Any]

    @property
    def incarnation(self) -> str:
        """Identifies the use of the job id."""
        return self.id.rpartition(".")[0]

    @property
    def number(self) -> int:
        """The event's index in the stream: 0, 1, 2 …"""
        return int(self.id.rpartition(".")[2])


class Stream:
    """A job's stream, which is read in the background from the start."""

    def __init__(
        self, worker: "RunningWorker", body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        self.job_id: str = body.get("job_id", "")
        self.sent_at = time.monotonic()
        self.events: list[Received] = []
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.refusal: dict[str, Any] | None = None
        self.closed_at: float | None = None
        self._changed = threading.Condition()
        self._client = httpx2.Client(base_url=worker.url, timeout=60.0, trust_env=False, verify=_NO_TLS)
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._read, args=(body, headers or {}), daemon=True)
        self._thread.start()

    def _read(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        try:
            with self._client.sse("/execute", method="POST", json=body, headers=headers) as source:
                response = source.response
                self._socket = response.extensions["network_stream"].get_extra_info("socket")
                self.headers = dict(response.headers)
                if response.status_code != 200:
                    response.read()
                    self.refusal = response.json()["error"]
                self._tell(lambda: setattr(self, "status", response.status_code))
                if self.refusal is None:
                    for sse in source:
                        received = Received(time.monotonic(), sse.id, sse.event, json.loads(sse.data))
                        self._tell(lambda received=received: self.events.append(received))  # type: ignore[misc]
        except (httpx2.HTTPError, OSError):
            pass
        finally:
            self._client.close()
            self._tell(lambda: setattr(self, "closed_at", time.monotonic()))

    def _tell(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    @property
    def _refused_for_good(self) -> bool:
        """Whether the request was refused, so that no events follow."""
        return self.refusal is not None and self.closed_at is not None

    def wait(
        self, ready: Callable[[Self], bool], *, within_sec: float = 30.0, what: str = "the stream"
    ) -> Self:
        """Wait until `ready` is true for the stream.

        Raises:
            TimeoutError: it does not become true in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: ready(self) or self._refused_for_good, within_sec)
            if not ready(self):
                raise TimeoutError(f"waited {within_sec} s for {what} of {self.job_id}: {self.events[-3:]}")
        return self

    def started(self, within_sec: float = 30.0) -> Self:
        """Wait for `started`."""
        return self.wait(lambda s: bool(s.events), within_sec=within_sec, what="started")

    def events_seen(self, count: int, within_sec: float = 60.0) -> Self:
        """Wait for this many events, or for the end if there are fewer."""
        return self.wait(
            lambda s: len(s.events) >= count or s.closed_at is not None,
            within_sec=within_sec,
            what=f"{count} events",
        )

    def tokens_seen(self, count: int, within_sec: float = 60.0) -> Self:
        """Wait for this many tokens."""
        return self.wait(lambda s: len(s.tokens) >= count, within_sec=within_sec, what=f"{count} tokens")

    def finished(self, within_sec: float = 120.0) -> Self:
        """Wait until the server has closed the stream."""
        return self.wait(lambda s: s.closed_at is not None, within_sec=within_sec, what="the end")

    def leave(self) -> None:
        """Close the socket once there is a response, even while no data arrive."""
        self.wait(lambda s: s.status is not None, what="an answer")
        if self._socket is not None:
            # `close` would wait for the reading thread.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def tokens(self) -> list[Received]:
        """The `token` events so far."""
        return [event for event in self.events if event.event == "token"]

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(event.data["t"] for event in self.tokens)

    @property
    def terminal(self) -> Received | None:
        """The `end` or `error` event, once it has arrived."""
        return next((event for event in self.events if event.event in ("end", "error")), None)

    def assert_whole(self) -> None:
        """Check the stream: `started progress* token* (end|error)` or just `error`; ids of one job; token numbers
        without gaps; exactly one terminal event."""
        names = [event.event for event in self.events]
        assert [event.number for event in self.events] == list(range(len(names))), self.events
        assert len({event.incarnation for event in self.events}) <= 1, self.events
        assert [event.data["i"] for event in self.tokens] == list(range(len(self.tokens)))
        if names != ["error"]:
            assert names[0] == "started"
            between = names[1:-1]
            assert between == ["progress"] * between.count("progress") + ["token"] * between.count("token")
            assert names[-1] in ("end", "error")


class RunningWorker:
    """A worker process with its own port and its log in a file."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx2.Client(base_url=self.url, timeout=30.0, trust_env=False, verify=_NO_TLS)

    # Requests.

    def health(self) -> dict[str, Any]:
        """The body of `GET /health`."""
        body: dict[str, Any] = self.client.get("/health").json()
        return body

    def ready(self, within_sec: float = 60.0) -> Self:
        """Wait until the worker is healthy."""
        wait_until(self._healthy, within_sec=within_sec, what="a healthy worker")
        return self

    def _healthy(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(
                f"the worker exited with {self.process.returncode}: {self.log.read_text()[-2000:]}"
            )
        try:
            return self.client.get("/health").status_code == 200
        except httpx2.TransportError:
            return False

    def execute(self, job_id: str, prompt: str = "Write a haiku about the sea.", **fields: Any) -> Stream:
        """Start a job and follow its stream."""
        return Stream(self, {"job_id": job_id, "prompt": prompt, **fields})

    def cancel(self, job_id: str, **headers: str) -> httpx2.Response:
        """`POST /cancel`."""
        return self.client.post("/cancel", json={"job_id": job_id}, headers=headers)

    def record(self, job_id: str) -> dict[str, Any]:
        """The body of `GET /jobs/{job_id}`."""
        body: dict[str, Any] = self.client.get(f"/jobs/{job_id}").json()
        return body

    def narration(self) -> list[dict[str, Any]]:
        """The log events so far, of both processes."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def narrated(self, action: str, within_sec: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Wait for a log event of this action with these fields, and return it."""

        def look() -> dict[str, Any] | None:
            wanted = {"action": action, **fields}
            return next((e for e in self.narration() if wanted.items() <= e.items()), None)

        return wait_until(look, within_sec=within_sec, what=f"narration of {action} {fields}")

    # Signals.

    @property
    def engine_pid(self) -> int:
        """The engine's process id."""
        pid = self.health()["engine_pid"]
        assert isinstance(pid, int)
        return pid

    def signal_engine(self, sig: signal.Signals) -> None:
        """Send the engine process a signal."""
        os.kill(self.engine_pid, sig)

    def stop(self, within_sec: float = 15.0) -> int:
        """Send SIGTERM, and wait for the end. Returns the exit code."""
        try:
            return end(self.process, within_sec)
        finally:
            self.client.close()


@contextmanager
def running_worker(
    engine: EngineKind = "scripted",
    *,
    port: int | None = None,
    wait: bool = True,
    env: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[RunningWorker]:
    """A worker process, from its start to its end.

    Args:
        engine: the scripted engine, or llama.cpp with the bundled model.
        port: the port to listen on; default: a free one.
        wait: wait until the worker is healthy.
        env: further environment variables.
        options: command line options, such as `max_queue=2` for `--max-queue 2`; True for a flag without value. By
            default there is no spare engine process.
    """
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="worker-orcd-") as folder:
        log = Path(folder) / "narration.jsonl"
        arguments = ["--port", str(port)]
        for name, value in {"log_format": "json", "spare_engine": "off", **options}.items():
            arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        with log.open("wb") as said, Path(os.devnull).open("rb") as nothing:
            process = _start(engine, arguments, nothing, said, {**os.environ, **(env or {})})
        worker = RunningWorker(process, port, log)
        try:
            if wait:
                worker.ready()
            yield worker
        finally:
            worker.stop()


def _start(
    engine: EngineKind, arguments: list[str], stdin: IO[bytes], said: IO[bytes], env: dict[str, str]
) -> Process:
    """Start the process. A worker with the scripted engine is forked, unless `env` configures Python itself."""
    if engine == "scripted" and not any(
        name.startswith("PYTHON") for name, _ in env.items() - os.environ.items()
    ):
        streams = (stdin.fileno(), said.fileno(), said.fileno())
        return forked.ForkedProcess(_FORKED, arguments, streams=streams, env=env)
    command = [sys.executable, "-m", _MODULES[engine], *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=said, stderr=said, env=env)
