"""Tools called by way of client libraries that nobody here wrote, and a cancel in the middle of a call."""

import json
import subprocess

import pytest

from tests.clients.puppet import HERE, environment, python
from worker_orcd.testing.harness import RunningWorker

pytestmark = [pytest.mark.timeout(600), pytest.mark.needs("python-clients")]
LIBRARIES = {
    "pydantic-ai": "ModelAPIError",
    "agents": "APIError",
    "agents-responses": "ModelBehaviorError",
    "anthropic": "APIStatusError",
    "langchain": "APIError",
}
"""What each raises for a stream that was cancelled from elsewhere. LangChain's has taken 8 s, and once did not end."""


@pytest.mark.parametrize(
    "library",
    [
        *("pydantic-ai", "agents", "agents-responses", "anthropic"),
        pytest.param("langchain", marks=pytest.mark.nightly),
    ],
)
def test_tools_are_called_but_not_with_a_call_that_was_cancelled(served: RunningWorker, library: str) -> None:
    """Two requests, whole and streamed; and a cancel when all of the call was there but its end."""
    command = [python()[0], str(HERE / "python/tools.py"), library, served.url]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    answered = {"text": "Sunny.", "called_with": ["Bern"]}
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "whole": answered,
        "stream": answered,
        "cancelled": {"raised": LIBRARIES[library], "called_with": []},
    }
