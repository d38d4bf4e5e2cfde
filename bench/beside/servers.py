"""The two servers side by side: started alike, one of them stopped while the other is measured."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.beside.client import Stream, ask
from bench.beside.texts import words
from worker_orcd.child_process import end, free_port, wait_until
from worker_orcd.settings import available_cores, bundled_model
from worker_orcd.testing.harness import RunningWorker, running_worker

CONTEXT = 16384
PARALLEL = 16
CACHE_MIB = 1024


def peer_command(program: Path, port: int) -> list[str]:
    """llama-server as our worker is by default: one pool of cells for all sequences, the same host memory for prefixes.

    Batch sizes, flash attention (auto) and all else are its own defaults, as ours are.
    """
    options = {
        "--model": bundled_model(),
        "--port": port,
        "--ctx-size": CONTEXT,
        "--parallel": PARALLEL,
        "--threads": available_cores(),
        "--threads-batch": available_cores(),
        "--cache-ram": CACHE_MIB,
    }
    return [
        str(program),
        *(str(word) for pair in options.items() for word in pair),
        "--kv-unified",
        "--metrics",
    ]


def our_options() -> dict[str, Any]:
    """The worker's options, which are its defaults."""
    return {
        "context_length": CONTEXT,
        "parallel": PARALLEL,
        "threads": available_cores(),
        "prefix_cache_mib": CACHE_MIB,
        "spare_engine": "on",  # As by default; the harness of tests has it off.
    }


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `ours` or `peer`."""

    name: str
    port: int
    pid: int
    computed_metric: str
    running_metric: str

    def stream(self, path: str, **body: Any) -> Stream:
        """Send a request of OpenAI's API; its answer is streamed."""
        return Stream(self.port, path, {"stream": True, **body})

    def complete(self, prompt: str, tokens: int, **more: Any) -> Stream:
        """Continue a text by exactly so many tokens."""
        return self.stream("/v1/completions", prompt=prompt, max_tokens=tokens, **GREEDY, **more)

    def chat(self, messages: list[dict[str, str]], tokens: int, **more: Any) -> Stream:
        """Answer a conversation with exactly so many tokens."""
        return self.stream("/v1/chat/completions", messages=messages, max_tokens=tokens, **GREEDY, **more)

    def metric(self, name: str) -> float:
        """A figure of `GET /metrics`."""
        _, body = ask(self.port, "GET", "/metrics")
        for text in body.decode().splitlines():
            if text.startswith(f"{name} "):
                return float(text.rpartition(" ")[2])
        raise LookupError(f"{self.name} has no metric {name}")

    def computed(self) -> float:
        """Prompt tokens computed so far. llama-server's count leaves out prompts that were not read to their end."""
        return self.metric(self.computed_metric)

    def idle(self) -> "Server":
        """Wait until nothing runs: what a request leaves behind must not disturb the next one."""
        wait_until(
            lambda: self.metric(self.running_metric) == 0, within_sec=120, what=f"{self.name} to be idle"
        )
        return self

    def _processes(self) -> list[psutil.Process]:
        front = psutil.Process(self.pid)
        return [front, *front.children(recursive=True)]

    def suspend(self) -> None:
        """Stop all its processes, the front first: it must not find its engine stuck."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Let them go on, the front last."""
        for process in reversed(self._processes()):
            process.resume()


GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


class Bench:
    """Both servers, and what the workloads need of them."""

    def __init__(self, worker: RunningWorker, ours: Server, peer: Server | None, salt: str) -> None:
        self.worker = worker
        self.ours = ours
        self.peer = peer
        self._salt = salt

    def text(self, name: str, number: int, tokens: int) -> str:
        """A text of this run, the same for both servers."""
        return words(f"{self._salt}/{name}/{number}", tokens)

    @contextmanager
    def nobody(self) -> Iterator[None]:
        """Both are stopped: something else is measured."""
        servers = [server for server in (self.ours, self.peer) if server]
        with ExitStack() as stack:
            for server in servers:
                server.idle().suspend()
                stack.callback(server.resume)
            yield

    @contextmanager
    def only(self, server: Server) -> Iterator[Server]:
        """The other one is stopped."""
        other = self.peer if server is self.ours else self.ours
        if other is None:
            yield server.idle()
            return
        other.idle().suspend()
        try:
            yield server.idle()
        finally:
            other.resume()

    def in_turns(self, number: int, measure: Callable[[Server], dict[str, float]]) -> dict[str, float]:
        """Measure both, one after the other, the other one first in each second round.

        `measure` returns its main figure as `""`, which gets the server's name; others are prefixed with it.
        """
        servers = [server for server in (self.ours, self.peer) if server]
        figures: dict[str, float] = {}
        for server in reversed(servers) if number % 2 else servers:
            with self.only(server):
                for name, value in measure(server).items():
                    figures[f"{server.name}_{name}" if name else server.name] = value
        return figures


def _healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"{process.args!r} exited with {process.returncode}")
    try:
        return ask(port, "GET", "/health")[0] == 200
    except OSError:
        return False


@contextmanager
def launched(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Any server, from its start to its end; healthy when this is entered."""
    with Path(os.devnull).open("r+b") as nothing:
        process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        wait_until(lambda: _healthy(process, port), within_sec=120, what=command[0])
        yield process
    finally:
        end(process, 15)


def our_command(port: int) -> list[str]:
    """The worker as users start it."""
    return [str(Path(sys.executable).with_name("worker-orcd")), "--port", str(port)]


@contextmanager
def both(program: Path | None, salt: str) -> Iterator[Bench]:
    """Start both servers, warmed up; without a program ours alone."""
    with ExitStack() as stack:
        worker = stack.enter_context(running_worker("llama", wait=False, **our_options()))
        worker.ready(within_sec=180)
        ours = Server(
            "ours",
            worker.port,
            worker.process.pid,
            'worker_prompt_tokens_total{source="computed"}',
            "worker_jobs_running",
        )
        peer = None
        if program is not None:
            port = free_port()
            process = stack.enter_context(launched(peer_command(program, port), port))
            peer = Server(
                "peer", port, process.pid, "llamacpp:prompt_tokens_total", "llamacpp:requests_processing"
            )
        bench = Bench(worker, ours, peer, salt)
        bench.in_turns(
            0, lambda server: {"": server.complete(words(salt, 600), 8).finished().first_token_ms()}
        )
        yield bench
