"""Structures by way of agent libraries: Pydantic AI, LangChain and OpenAI's Agents SDK, in each of their modes."""

import json
import subprocess
from typing import Any

import pytest

from tests.clients.puppet import HERE, environment, python
from tests.clients.test_openai_python import cancelled, says
from worker_orcd.testing.harness import RunningWorker

pytestmark = [pytest.mark.timeout(600), pytest.mark.needs("python-clients")]
MODES = {
    "pydantic-ai": ("tool", "native", "prompted"),
    "langchain": ("json_schema", "function_calling", "json_mode"),
    "agents": ("chat", "responses"),
}
RAISED = {
    "pydantic-ai": "ModelAPIError",
    "langchain": "OpenAIInvalidRequestError",
    "agents": "APIError",
}
"""What each raises when a structure is cancelled from elsewhere. LangChain retries; that is answered as cancelled."""
ADA = {"name": "Ada", "city": "Bern", "age": 36}
each_library = pytest.mark.parametrize("library", MODES)


def run(library: str, worker: RunningWorker, prompt: str) -> dict[str, Any]:
    """What came of each way to ask."""
    command = [python()[0], str(HERE / "python/structures.py"), library, worker.url, prompt]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@each_library
def test_a_library_gets_its_structures(served: RunningWorker, library: str) -> None:
    """In each of its modes, whole and streamed."""
    ways = [f"{mode}{how}" for mode in MODES[library] for how in ("", " streamed")]
    assert run(library, served, says(json.dumps(ADA))) == dict.fromkeys(ways, ADA)


@each_library
def test_a_structure_that_is_cancelled_from_elsewhere_is_an_error(
    served: RunningWorker, library: str
) -> None:
    """Half of it never looks whole, and a retry computes nothing."""
    outcome = run(library, served, "cancelled")["cancelled"]
    assert outcome["raised"] == RAISED[library], outcome
    assert "Job cancelled by client request" in outcome["message"]
    phase = "queued" if library == "langchain" else "decode"
    assert cancelled(served, f"{library}-structure", "client")["phase"] == phase, "of the last request"
