"""What stands between clients and two engines: LiteLLM's proxy, a plain Ray Serve application, or a fleet of ours."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.beside.client import ask
from worker_orcd.child_process import end, free_port, wait_until
from worker_orcd.settings import bundled_model

ROOT = Path(__file__).parents[2]
LITELLM = ROOT / ".outside/python/bin/litellm"
WORKERS = 2
PARALLEL = 4
CELLS = 8192
START_SEC = 400.0
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # As in a fleet of ours: otherwise plain Ray Serve would wait for the engines.
}


@dataclass(frozen=True, slots=True)
class Front:
    """A front that serves OpenAI's API.

    Attributes:
        name: for the table.
        port: where it listens.
        computing: whether any engine behind it computes now, as the engines themselves say.
        fields: what each request has beside the common fields.
        cancels: whether it serves `POST /cancel`.
    """

    name: str
    port: int
    computing: Callable[[], bool]
    fields: Mapping[str, Any]
    cancels: bool = False


@contextmanager
def litellm(program: Path) -> Iterator[Front]:
    """LiteLLM's proxy with its default settings."""
    with _litellm(program, "LiteLLM", {}) as front:
        yield front


@contextmanager
def litellm_cancelling(program: Path) -> Iterator[Front]:
    """LiteLLM's proxy with the setting that cancels requests whose clients leave."""
    settings = {"cancel_on_disconnect": True}
    with _litellm(program, "LiteLLM, cancel_on_disconnect", settings) as front:
        yield front


@contextmanager
def plain_serve(program: Path) -> Iterator[Front]:
    """A plain Ray Serve application."""
    with _engines(program) as engines:
        port = free_port()
        command = [sys.executable, "-m", "bench.fleet.plain_serve", str(port), *map(_url, engines)]
        with _started(command, port, "/health"):
            yield Front("plain Ray Serve", port, lambda: _any_slot(engines), {})


@contextmanager
def ours(_program: Path) -> Iterator[Front]:
    """`worker-orcd fleet`."""
    port = free_port()
    options = {
        "workers": WORKERS,
        "routers": 2,
        "port": port,
        "threads": 1,
        "parallel": PARALLEL,
        "context-length": CELLS,
        "model-alias": "bench",
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "worker_orcd", "fleet", *given, "--log-format", "json"]

    def whole() -> bool:
        health = json.loads(ask(port, "GET", "/health")[1])
        return health["status"] == "healthy" and health["kv_cells_total"] == WORKERS * CELLS

    def computing() -> bool:
        jobs = json.loads(ask(port, "GET", "/jobs?limit=0")[1])["jobs"]
        return any(job["ended_ms"] is None for job in jobs)

    with _started(command, port, "/health"):
        wait_until(whole, within_sec=START_SEC, what="a whole fleet")
        yield Front("worker-orcd fleet", port, computing, {"ignore_eos": True}, cancels=True)


FRONTS = {
    "litellm": litellm,
    "litellm-cancelling": litellm_cancelling,
    "plain-serve": plain_serve,
    "ours": ours,
}


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _any_slot(engines: list[int]) -> bool:
    """Whether a slot of a llama-server computes."""
    return any(
        slot["is_processing"] for port in engines for slot in json.loads(ask(port, "GET", "/slots")[1])
    )


@contextmanager
def _litellm(program: Path, name: str, settings: dict[str, Any]) -> Iterator[Front]:
    with _engines(program) as engines, tempfile.TemporaryDirectory() as folder:
        port = free_port()
        models = [
            {
                "model_name": "bench",
                "litellm_params": {
                    "model": "openai/bench",
                    "api_base": f"{_url(engine)}/v1",
                    "api_key": "none",
                },
            }
            for engine in engines
        ]
        config = Path(folder) / "config.yaml"  # JSON is YAML.
        config.write_text(json.dumps({"model_list": models, "general_settings": settings}), encoding="utf-8")
        command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with _started(command, port, "/health/liveliness"):
            yield Front(name, port, lambda: _any_slot(engines), {})


@contextmanager
def _engines(program: Path) -> Iterator[list[int]]:
    """Two llama-servers with one thread each, which generate to `max_tokens`."""
    options = {
        "--model": bundled_model(),
        "--ctx-size": CELLS,
        "--parallel": PARALLEL,
        "--threads": 1,
        "--threads-batch": 1,
    }
    given = [str(word) for pair in options.items() for word in pair]
    with ExitStack() as stack:
        ports = [free_port() for _ in range(WORKERS)]
        for port in ports:
            command = [str(program), *given, "--port", str(port), "--kv-unified", "--slots", "--ignore-eos"]
            stack.enter_context(_started(command, port, "/health"))
        yield ports


@contextmanager
def _started(command: list[str], port: int, health: str) -> Iterator[None]:
    """A server, from its start to its end."""
    env = {**os.environ, **ENVIRONMENT}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=ROOT
        )

        def healthy() -> bool:
            if process.poll() is not None:
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{command[:3]} exited with {process.returncode}: {said}")
            try:
                return ask(port, "GET", health)[0] == 200
            except OSError:
                return False

        try:
            wait_until(healthy, within_sec=START_SEC, what=" ".join(command[:3]))
            yield
        finally:
            process.send_signal(signal.SIGINT)
            end(process, 30)
