"""Frameworks that ask for structures and call tools: instructor, LlamaIndex, Haystack, smolagents and DSPy."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import PAGE, as_here
from tests.clients.puppet import HERE, environment
from tests.clients.test_openai_python import cancelled
from tests.docs.blocks import blocks
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker

pytestmark = [pytest.mark.timeout(600), pytest.mark.needs("python-frameworks")]
ADA = {"name": "Ada", "city": "Bern", "age": 36}
SAID = "Job cancelled by client request"


@dataclass(frozen=True, slots=True)
class Framework:
    """What is known of a framework.

    Attributes:
        answer: what it makes of an answer. instructor makes a person of all answers.
        stream: what it raises when a stream is cancelled from elsewhere.
        whole: what it raises when a whole answer is.
        limit: what it raises when its time limit stops a whole answer, if it has no other means.
    """

    answer: str = "Hello 👋"
    stream: str = "APIError"
    whole: str = "BadRequestError"
    limit: dict[str, str] | None = None


def agent(said: str) -> Framework:
    """An agent of smolagents. `said`: how its error begins."""
    raised = "AgentGenerationError"
    limit = {"raised": raised, "message": f"{said}:\nRequest timed out."}
    return Framework(stream=raised, whole=raised, limit=limit)


FRAMEWORKS = {
    "instructor": Framework(answer="Ada", whole="InstructorRetryException"),
    "llama-index": Framework(),
    "haystack": Framework(),
    "smolagents": Framework(limit={"raised": "APITimeoutError", "message": "Request timed out."}),
    "smolagents-code": agent("Error in generating model output"),
    "smolagents-tools": agent("Error while generating output"),
    "dspy": Framework(stream="LMServerError", whole="LMInvalidRequestError"),
}
each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def run(framework: str, worker: RunningWorker, *ways: str) -> dict[str, Any]:
    """What came of each way to ask."""
    command = [find("python-frameworks") or "", str(HERE / "python/frameworks.py"), framework, worker.url]
    ran = subprocess.run(
        [*command, *ways], env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@each_framework
def test_a_framework_is_answered_calls_tools_and_stops(served: RunningWorker, framework: str) -> None:
    """Whole and streamed. Each way to stop leaves a receipt, and nothing is sent again."""
    known = FRAMEWORKS[framework]
    stops = {"stopped": "disconnect", "elsewhere": "client"}
    stops |= {f"whole_{way}": reason for way, reason in stops.items()}
    seen = run(framework, served, "whole", "stream", "tool", "tool_stream", *stops)
    called = {"text": "Sunny.", "called_with": ["Bern"]}
    for way, name in (("elsewhere", known.stream), ("whole_elsewhere", known.whole)):
        raised = seen.pop(way)
        assert (raised["raised"], SAID in raised["message"]) == (name, True), raised
    assert seen == {
        "whole": known.answer,
        "stream": known.answer,
        "tool": called,
        "tool_stream": called,
        "stopped": None,
        "whole_stopped": known.limit,
    }
    for way, reason in stops.items():
        # A request that was sent again would have the same id, and have been answered in the queue.
        assert cancelled(served, f"{framework}-{way}", reason)["phase"] == "decode"


def test_instructor_gets_structures_in_each_of_its_modes(served: RunningWorker) -> None:
    """Whole and streamed, except for parallel calls, which it does not stream."""
    seen = run("instructor", served, "modes")["modes"]
    assert seen.pop("PARALLEL_TOOLS") == [{"city": "Bern"}, {**ADA, "city": "Oslo"}]
    modes = {"TOOLS", "TOOLS_STRICT", "FUNCTIONS", "JSON", "JSON_O1", "JSON_SCHEMA", "MD_JSON"}
    modes |= {"RESPONSES_TOOLS", "RESPONSES_TOOLS_WITH_INBUILT_TOOLS"}
    assert seen == dict.fromkeys([*modes, *(f"{mode} streamed" for mode in modes)], ADA)


def test_dspy_gets_structures_by_its_adapters(served: RunningWorker) -> None:
    """One has the server constrain the output, the other asks in words."""
    seen = run("dspy", served, "modes")["modes"]
    assert seen == {"JSONAdapter": ADA, "ChatAdapter": ADA}


def test_the_pages_declaration_of_the_worker_for_dspy_works(served: RunningWorker, tmp_path: Path) -> None:
    """The example ends before the first request."""
    (text,) = (block.text for block in blocks(PAGE) if "register_provider(server" in block.text)
    program = tmp_path / "example.py"
    asked = json.dumps({"text": "Hello", "token_ms": 0})
    program.write_text(f"{as_here(text, served)}\nprint(dspy.settings.lm({asked!r}))\n", encoding="utf-8")
    command = [find("python-frameworks") or "", str(program)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500, check=False)
    assert ran.stdout.splitlines()[-1:] == ["['Hello']"], ran.stderr
