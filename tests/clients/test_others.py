"""The `llm` command line, OpenAI's package for Node, and curl."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.test_openai_python import MODEL, SLOW, cancelled, only_job, says
from tests.helpers import ended_state
from worker_orcd.testing.harness import RunningWorker, wait_until

NODE = Path(__file__).parent / "node"


def run(*command: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(command, text=True, capture_output=True, timeout=120, check=False, **more)


# llm.


@pytest.fixture
def llm(served: RunningWorker, tmp_path: Path) -> dict[str, str]:
    """Its configuration, as its documentation describes OpenAI-compatible models."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {served.url}/v1\n"
    )
    return {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}


def test_the_llm_command_is_answered(llm: dict[str, str]) -> None:
    """With a stream, which is the default, and without."""
    for more in ([], ["--no-stream"]):
        done = run(sys.executable, "-m", "llm", "-m", "mine", *more, says("Hello 👋"), env=llm)
        assert done.stdout.strip() == "Hello 👋", done.stderr


def test_an_llm_command_that_is_killed_is_stopped(llm: dict[str, str], served: RunningWorker) -> None:
    """By Ctrl-C or SIGKILL."""
    command = [sys.executable, "-m", "llm", "-m", "mine", SLOW]
    with subprocess.Popen(command, env=llm, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        job_id = only_job(served)
        process.kill()
    cancelled(served, job_id, "disconnect")


# Node.


@pytest.mark.needs("node", "node-clients")
def test_openais_package_for_node(served: RunningWorker) -> None:
    """Streams, background and cancel, streamed responses; test_libraries.py tests its ways to stop."""
    done = run("node", "check.mjs", served.url, cwd=NODE)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["models"] == [MODEL]
    assert seen["whole"] == "Hello 👋"
    assert seen["streamed"] == "abc"
    assert seen["background"] == ["cancelled"] * 3
    assert seen["events"][0] == "response.created"
    assert seen["events"][-1] == "response.completed"


# curl.


@pytest.mark.needs("curl")
def test_curl_streams_and_stops_when_it_is_killed(served: RunningWorker) -> None:
    """Plain HTTP."""
    url = f"{served.url}/v1/chat/completions"

    def body(prompt: str) -> str:
        return json.dumps({"messages": [{"role": "user", "content": prompt}], "stream": True})

    done = run("curl", "-sN", "--max-time", "20", url, "-d", body(says("ab")))
    assert done.stdout.endswith("data: [DONE]\n\n")
    command = ["curl", "-sN", "-H", "X-Job-Id: curl-1", url, "-d", body(SLOW)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        wait_until(lambda: served.record("curl-1").get("state") == "running", what="its start")
        process.kill()
    cancelled(served, "curl-1", "disconnect")
    assert ended_state(served, "curl-1")["requeues"] == 0
