"""The main uses of client libraries with the bundled model: structures, and calls that it has to make.

The other tests of these libraries use the scripted engine, which says whatever a test needs.
"""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import test_frameworks, test_structures
from tests.clients.puppet import HERE, environment, python
from tests.helpers import at_rest
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker, running_worker

pytestmark = [pytest.mark.nightly, pytest.mark.real, pytest.mark.timeout(900)]
QUESTION = "Invent a person: name, city (Bern or Oslo), age."
CITIES = ("Bern", "Oslo")
UNCONSTRAINED = {"prompted", "json_mode"}
"""Modes in which a library asks in words, which this model may not obey; then the library says so."""


@pytest.fixture(scope="module")
def bundled() -> Iterator[RunningWorker]:
    """The bundled model, by the name that the scripts send."""
    with running_worker("llama", wait=False, model_alias="scripted", context_length=32768) as worker:
        yield worker.ready(within_sec=180)


def assert_person(person: Any) -> None:
    """What the schema allows."""
    assert set(person) == {"name", "city", "age"}, person
    assert (person["city"] in CITIES, len(person["name"]) <= 12, 0 <= person["age"] <= 99) == (True,) * 3


def outcome(worker: RunningWorker, *command: str) -> dict[str, Any]:
    """What a script printed."""
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=800, check=False)
    assert ran.returncode == 0, ran.stderr
    at_rest(worker)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.needs("python-clients")
@pytest.mark.parametrize("library", ["pydantic-ai", "langchain", "agents", "litellm"])
def test_an_agent_library_gets_structures(bundled: RunningWorker, library: str) -> None:
    """By response formats and by forced calls, whole and streamed."""
    seen = test_structures.run(library, bundled, QUESTION)
    at_rest(bundled)
    assert len(seen) >= 4
    for way, person in seen.items():
        if way.split()[0] in UNCONSTRAINED and "raised" in (person or {}):
            continue
        assert_person(person)


@pytest.mark.needs("python-frameworks")
@pytest.mark.parametrize("framework", ["instructor", "llama-index", "haystack", "smolagents", "dspy"])
def test_a_framework_gets_structures(bundled: RunningWorker, framework: str) -> None:
    """In each of its modes that constrain the output; smolagents' agents do a step each."""
    seen = test_frameworks.run(framework, bundled, "structured")["structured"]
    at_rest(bundled)
    assert "raised" not in seen, seen
    assert seen.pop("steps", True), "of smolagents' agents"
    for person in seen.values():
        assert_person(person)


@pytest.mark.needs("python-clients")
@pytest.mark.parametrize("library", ["agents", "agents-responses"])
def test_the_agents_sdk_calls_a_tool_and_answers(bundled: RunningWorker, library: str) -> None:
    """The call is forced, the answer to its result is free."""
    script = str(HERE / "python/tools.py")
    seen = outcome(bundled, python()[0], script, library, bundled.url, "forced")["forced"]
    assert set(seen["called_with"]) <= set(CITIES)
    assert seen["called_with"]
    assert isinstance(seen["text"], str)


@pytest.mark.needs("node", "node-clients")
@pytest.mark.parametrize("sdk", ["ai", "ai-sdk-6"])
def test_the_ai_sdk_makes_objects_and_forces_calls(bundled: RunningWorker, sdk: str) -> None:
    """In both versions."""
    provider = "@ai-sdk/openai-compatible" if sdk == "ai" else f"{sdk}-openai-compatible"
    command = [find("node") or "", str(HERE / "node/tools.mjs"), bundled.url, sdk, provider]
    seen = outcome(bundled, *command, "object", "output", "forced")
    assert seen["object"]["outcome"]["city"] in CITIES
    assert seen["output"]["outcome"]["city"] in CITIES
    assert seen["forced"]["outcome"] == ["weather"]
    (city,) = seen["forced"]["calledWith"]
    assert city in CITIES


@pytest.mark.needs("node", "node-clients")
def test_langchain_js_makes_structures(bundled: RunningWorker) -> None:
    """By a response format and by a forced call."""
    command = [find("node") or "", str(HERE / "node/langchain.mjs"), bundled.url]
    seen = outcome(bundled, *command, "jsonSchema", "functionCalling")
    assert [made["city"] in CITIES for made in seen.values()] == [True, True]
