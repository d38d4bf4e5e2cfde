"""Frameworks that ask for structures and call tools: instructor, LlamaIndex, Haystack and smolagents."""

import json
import subprocess
from typing import Any

import pytest

from tests.clients.puppet import HERE, environment
from tests.clients.test_openai_python import cancelled
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker

pytestmark = [pytest.mark.timeout(600), pytest.mark.needs("python-frameworks")]
FRAMEWORKS = {
    "instructor": "Ada",
    "llama-index": "Hello 👋",
    "haystack": "Hello 👋",
    "smolagents": "Hello 👋",
}
"""What each makes of an answer. instructor makes a person of all answers."""


def run(framework: str, worker: RunningWorker, *ways: str) -> dict[str, Any]:
    """What came of each way to ask."""
    command = [find("python-frameworks") or "", str(HERE / "python/frameworks.py"), framework, worker.url]
    ran = subprocess.run(
        [*command, *ways], env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_is_answered_calls_tools_and_stops(served: RunningWorker, framework: str) -> None:
    """Whole and streamed. Both ways to stop a stream leave a receipt."""
    ways = ("whole", "stream", "tool", "tool_stream", "stopped", "elsewhere")
    seen = run(framework, served, *ways)
    called = {"text": "Sunny.", "called_with": ["Bern"]}
    answered = FRAMEWORKS[framework]
    raised = {"raised": "APIError", "message": "Job cancelled by client request"}
    assert seen == {
        "whole": answered,
        "stream": answered,
        "tool": called,
        "tool_stream": called,
        "stopped": None,
        "elsewhere": raised,
    }
    assert cancelled(served, f"{framework}-stopped", "disconnect")["phase"] == "decode"
    assert cancelled(served, f"{framework}-elsewhere", "client")["phase"] == "decode"


@pytest.mark.nightly
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_bundled_model_gives_a_framework_what_its_schema_allows(
    real_worker: RunningWorker, framework: str
) -> None:
    """In each of the framework's modes that constrain the output; the others only tell the model what to write."""
    seen = run(framework, real_worker, "structured")["structured"]
    assert "raised" not in seen, seen
    for person in seen.values():
        assert (person["city"] in ("Bern", "Oslo"), len(person["name"]) <= 12) == (True, True)
