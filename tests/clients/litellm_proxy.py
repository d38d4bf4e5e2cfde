"""LiteLLM's proxy as a process."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.clients.puppet import environment, python
from worker_orcd.testing.harness import free_port, wait_until

KEY = "sk-0123456789abcdef0123456789abcdef"
"""The key of its clients."""


@contextmanager
def running_proxy(folder: Path, settings: str) -> Iterator[str]:
    """The proxy with such a config, from its start to its end. Yields the base URL of its API."""
    (folder / "config.yaml").write_text(settings)
    port = free_port()
    program = Path(*python()[:1]).with_name("litellm")
    command = [str(program), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with log.open("w") as said:
        env = {**environment(), "LITELLM_MASTER_KEY": KEY}
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said)

    def alive() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the proxy exited with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/health/liveliness", trust_env=False).is_success
        except httpx2.TransportError:
            return False

    try:
        wait_until(alive, within_sec=400, what="LiteLLM's proxy")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
