"""Tools called by way of client libraries that nobody here wrote, and a cancel in the middle of a call."""

import json
import subprocess

import pytest

from tests.clients.puppet import HERE, environment, python
from tests.clients.test_openai_python import cancelled
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker

pytestmark = pytest.mark.timeout(600)
LIBRARIES = {
    "pydantic-ai": "ModelAPIError",
    "agents": "APIError",
    "agents-responses": "ModelBehaviorError",
    "anthropic": "APIStatusError",
    "langchain": "APIError",
}
"""What each raises for a stream that was cancelled from elsewhere. LangChain's has taken 8 s, and once did not end."""


@pytest.mark.needs("python-clients")
@pytest.mark.parametrize(
    "library",
    ["pydantic-ai", "agents", "agents-responses", "anthropic", "langchain"],
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


@pytest.mark.needs("node", "node-clients")
@pytest.mark.parametrize(
    ("sdk", "openai_compatible"),
    [("ai", "@ai-sdk/openai-compatible"), ("ai-sdk-6", "ai-sdk-6-openai-compatible")],
    ids=["7", "6"],
)
def test_the_ai_sdk_calls_tools_and_makes_objects_but_runs_no_half_call(
    served: RunningWorker, sdk: str, openai_compatible: str
) -> None:
    """Whole, streamed, forced; half a call that is cancelled from elsewhere, or aborted.

    After the cancel the SDK sends the malformed call back to the model, under the same `X-Job-Id`. That request is
    answered as cancelled and computes nothing.
    """
    command = [find("node") or "", str(HERE / "node/tools.mjs"), served.url, sdk, openai_compatible]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    receipt = seen["cancelled"]["outcome"].pop("receipt")["receipt"]
    failed = ["Job cancelled by client request"] * 2
    (city,) = seen["forced"].pop("calledWith")
    assert city in ("Bern", "Oslo")
    for made in ("object", "output"):
        assert seen[made].pop("outcome")["city"] in ("Bern", "Oslo")
    assert seen == {
        "whole": {"outcome": {"text": "Sunny."}, "calledWith": ["Bern"]},
        "stream": {"outcome": {"text": "Sunny."}, "calledWith": ["Bern"]},
        "object": {"calledWith": []},
        "output": {"calledWith": []},
        "forced": {"outcome": ["weather"]},
        "cancelled": {"outcome": {"calls": 0, "aborted": False, "failed": failed}, "calledWith": []},
        "aborted": {"outcome": {"calls": 0, "aborted": True, "failed": []}, "calledWith": []},
    }
    assert (receipt["reason"], receipt["phase"], receipt["kv_cells_after"]) == ("client", "decode", 0)
    assert cancelled(served, f"aborted-{sdk}", "disconnect")["phase"] == "decode"
    assert served.record(f"cancelled-{sdk}")["tokens_out"] == 0, "of the request that came after it"


@pytest.mark.needs("node", "node-clients")
def test_langchain_js_calls_tools_makes_structures_and_computes_nothing_for_its_retries(
    served: RunningWorker,
) -> None:
    """Whole and streamed, in each of its ways to ask for a structure; cancelled in the middle of a call."""
    command = [find("node") or "", str(HERE / "node/langchain.mjs"), served.url]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    receipts = [seen[way].pop("receipt") for way in ("cancelled", "retried")]
    for way in ("jsonSchema", "functionCalling"):
        assert seen.pop(way)["city"] in ("Bern", "Oslo")
    called = {"text": "Sunny.", "args": {"city": "Bern"}}
    said = "Job cancelled by client request"
    assert seen == {
        "whole": called,
        "stream": called,
        "jsonMode": {"city": "Bern"},
        "cancelled": {"raised": "APIError", "message": said},
        "retried": {"raised": "BadRequestError", "message": f"400 {said}"},
    }
    for receipt in receipts:
        assert (receipt["reason"], receipt["phase"], receipt["kv_cells_after"]) == ("client", "decode", 0)
    assert served.record("langchain-js-retried")["tokens_out"] == 0, "of the retry"
