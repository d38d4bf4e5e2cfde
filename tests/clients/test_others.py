"""LangChain, the `llm` command line, OpenAI's package for Node, and curl."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

from tests.clients.test_openai_python import MODEL, SLOW, cancelled, only_job, says
from tests.helpers import ended_state
from worker_orcd.testing.harness import RunningWorker, wait_until

NODE = Path(__file__).parent / "node"


def run(*command: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """A program to its end."""
    return subprocess.run(command, text=True, capture_output=True, timeout=120, check=False, **more)


# LangChain.


@pytest.fixture
def langchain(served: RunningWorker) -> ChatOpenAI:
    """Its chat model."""
    given: dict[str, Any] = {"base_url": f"{served.url}/v1", "api_key": "none", "model": MODEL, "timeout": 20}
    return ChatOpenAI(**given)


def test_langchain_is_answered_and_streams(langchain: ChatOpenAI) -> None:
    """With what was used."""
    answer = langchain.invoke(says("Hello"))
    assert answer.content == "Hello"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
    assert "".join(str(chunk.content) for chunk in langchain.stream(says("abc"))) == "abc"


def test_leaving_a_stream_of_langchains_stops_the_job(langchain: ChatOpenAI, served: RunningWorker) -> None:
    """Its generator is closed."""
    stream = langchain.stream(SLOW)
    next(stream)
    job_id = only_job(served)
    stream.close()  # type: ignore[attr-defined]  # An iterator by its type, a generator in fact.
    cancelled(served, job_id, "disconnect")


# llm.


@pytest.fixture
def llm(served: RunningWorker, tmp_path: Path) -> dict[str, str]:
    """Its configuration, as its documentation describes OpenAI-compatible models."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {served.url}/v1\n"
    )
    return {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}


def test_the_llm_command_is_answered(llm: dict[str, str]) -> None:
    """Streaming, as it does by default, and not."""
    for more in ([], ["--no-stream"]):
        done = run(sys.executable, "-m", "llm", "-m", "mine", *more, says("Hello 👋"), env=llm)
        assert done.stdout.strip() == "Hello 👋", done.stderr


def test_an_llm_command_that_is_killed_is_stopped(llm: dict[str, str], served: RunningWorker) -> None:
    """By Ctrl-C or worse."""
    command = [sys.executable, "-m", "llm", "-m", "mine", SLOW]
    with subprocess.Popen(command, env=llm, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        job_id = only_job(served)
        process.kill()
    cancelled(served, job_id, "disconnect")


# Node.


@pytest.mark.needs("node", "node-clients")
def test_openais_package_for_node(served: RunningWorker) -> None:
    """Streaming, breaking out, AbortController, cancel by id, background and cancel, streamed responses."""
    done = run("node", "check.mjs", served.url, cwd=NODE)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["models"] == [MODEL]
    assert seen["whole"] == "Hello 👋"
    assert seen["streamed"] == "abc"
    assert seen["node-aborted"] in ("APIUserAbortError", "ended")
    assert seen["node-aborted-whole"] == "APIUserAbortError"
    for job_id in ("node-broken", "node-aborted", "node-aborted-whole"):
        cancelled(served, job_id, "disconnect")
    assert seen["elsewhere"] == {"name": "APIError", "code": "CANCELLED"}
    assert seen["cancelledWhole"] == {"status": 400, "code": "CANCELLED"}
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
