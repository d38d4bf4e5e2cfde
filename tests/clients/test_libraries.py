"""Third-party client libraries, in processes of their own (docs/clients.md)."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import PAGE, accepted, as_here, generated, in_phase, next_job, prompt_for
from tests.clients.puppet import HERE, Puppet, node, python, running_puppet
from tests.clients.test_openai_python import SLOW, cancelled, says
from tests.docs.blocks import ROOT, blocks
from tests.helpers import fresh_id
from worker_orcd.testing.harness import RunningWorker

pytestmark = pytest.mark.timeout(600)  # Some take seconds to import, on a busy machine minutes.


@dataclass(frozen=True, slots=True)
class Library:
    """What is known of a library.

    Attributes:
        name: its language and its name.
        title: how docs/clients.md calls it.
        whole: what it raises when a whole answer was cancelled from elsewhere.
        stream: what it raises when a stream was.
        leaving_stops: whether leaving its stream is enough to stop the job.
        version: of a library that is tried in two versions, the older one's.
    """

    name: str
    title: str
    whole: str
    stream: str
    leaving_stops: bool = True
    version: str = ""

    @property
    def example(self) -> str:
        """The job id of its example on the page."""
        return f"{self.name.removeprefix('python-')}-1"

    @property
    def called(self) -> str:
        """How clients.py or clients.mjs call it."""
        return self.name.partition("-")[2] + self.version

    def as_installed(self, example: str) -> str:
        """Its example with the names that its packages have in package.json."""
        if not self.version:
            return example
        for package, name in (("ai", "ai-sdk"), ("@ai-sdk/openai-compatible", "ai-sdk-openai-compatible")):
            example = example.replace(f'"{package}"', f'"{name.replace("ai-sdk", f"ai-sdk{self.version}")}"')
        return example

    def __str__(self) -> str:
        return self.name + self.version

    @property
    def in_python(self) -> bool:
        """Whether it is a library for Python; otherwise it is for Node."""
        return self.name.startswith("python-")

    @property
    def needs(self) -> pytest.MarkDecorator:
        """The programs that its tests need."""
        return pytest.mark.needs(*(["python-clients"] if self.in_python else ["node", "node-clients"]))


LIBRARIES = (
    Library("python-openai", "OpenAI, Python", "BadRequestError", "APIError"),
    Library("python-agents", "OpenAI Agents SDK", "BadRequestError", "ModelBehaviorError"),
    Library("python-langchain", "LangChain, Python", "OpenAIInvalidRequestError", "APIError"),
    Library("python-pydantic-ai", "Pydantic AI", "ModelRequestRejectedError", "ModelAPIError"),
    Library("python-anthropic", "Anthropic, Python", "BadRequestError", "APIStatusError"),
    Library("python-litellm", "LiteLLM, library", "BadRequestError", "MidStreamFallbackError"),
    Library("node-openai", "OpenAI, Node", "BadRequestError", "APIError"),
    Library("node-langchain", "LangChain.js", "BadRequestError", "APIError"),
    Library("node-ai-sdk", "AI SDK", "APICallError", "passed to onError", leaving_stops=False),
    Library("node-ai-sdk", "AI SDK", "APICallError", "passed to onError", leaving_stops=False, version="-6"),
)


@pytest.fixture(scope="module", params=[pytest.param(one, id=str(one), marks=one.needs) for one in LIBRARIES])
def _running(request: pytest.FixtureRequest, _served: RunningWorker) -> Iterator[tuple[Library, Puppet]]:
    library: Library = request.param
    command = python() if library.in_python else node()
    with running_puppet(command, library.called, _served.url) as puppet:
        yield library, puppet


@pytest.fixture
def library(_running: tuple[Library, Puppet]) -> Library:
    """What is known of the library."""
    return _running[0]


@pytest.fixture
def puppet(_running: tuple[Library, Puppet], served: RunningWorker) -> Puppet:
    """The library, connected to `served`."""
    return _running[1]


@pytest.mark.parametrize("call", ["whole", "stream"])
def test_it_is_answered(puppet: Puppet, call: str) -> None:
    """With the text that the model generates."""
    name = fresh_id("answered")
    puppet.ask(call, name, says("Hello 👋"))
    assert puppet.outcome(name)["text"] == "Hello 👋"


def test_leaving_a_stream(library: Library, puppet: Puppet, served: RunningWorker) -> None:
    """This stops its job, or the library has to stop the request as well."""
    name = fresh_id("left")
    puppet.ask("stream", name, SLOW, leave_after=3)
    assert puppet.outcome(name)["text"]
    if not library.leaving_stops:
        generated(served, name, served.record(name)["tokens_out"] + 10)
        puppet.stop(name)
    assert cancelled(served, name, "disconnect")["phase"] == "decode"


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("call", ["whole", "stream"])
def test_stopping_a_call_stops_its_job(puppet: Puppet, served: RunningWorker, call: str, phase: str) -> None:
    """By cancelling the task or with an AbortSignal, in each phase."""
    name = fresh_id("stopped")
    puppet.ask(call, name, prompt_for(phase))
    in_phase(served, name, phase)
    puppet.stop(name)
    assert cancelled(served, name, "disconnect")["phase"] == phase
    puppet.outcome(name)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("call", ["whole", "stream"])
def test_a_call_that_is_cancelled_from_elsewhere_raises_and_is_not_sent_again(
    library: Library, puppet: Puppet, served: RunningWorker, call: str, phase: str
) -> None:
    """Also if the worker could not recognize the same request."""
    before = accepted(served)
    name = fresh_id("elsewhere")
    puppet.ask(call, name, prompt_for(phase), job_id=False)
    job = next_job(served, [])
    in_phase(served, job, phase)
    served.cancel(job)
    outcome = puppet.outcome(name)
    assert outcome["raised"] == (library.whole if call == "whole" else library.stream), outcome
    assert "cancelled by client request" in outcome["message"]
    assert cancelled(served, job, "client")["phase"] == phase
    assert accepted(served) == before + 1


def test_its_example_on_the_page_stops_its_job(
    library: Library, puppet: Puppet, served: RunningWorker, tmp_path: Path
) -> None:
    """After about twenty pieces of text."""
    (text,) = (block.text for block in blocks(PAGE) if f'"X-Job-Id": "{library.example}"' in block.text)
    puppet.run(as_here(library.as_installed(text), served), tmp_path)
    assert cancelled(served, library.example, "disconnect")["phase"] == "decode"
    assert served.record(library.example)["tokens_out"] >= 15


def test_the_page_says_what_each_library_raises() -> None:
    """The table has a row for each."""
    lines = (ROOT / PAGE).read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").replace("`", "").split(" | ") for line in lines if line.startswith("| ")]
    [begin] = [n for n, row in enumerate(rows) if row[0] == "client"]
    raised = {row[0]: (row[2], row[3]) for row in rows[begin + 2 :] if len(row) == len(rows[begin])}
    assert raised == {one.title: (one.whole, one.stream) for one in LIBRARIES}


def test_the_page_says_which_versions_are_tested() -> None:
    """Those of the locks."""
    locked: dict[str, str] = {}
    for name in ("benchmarks", "frameworks", "requirements"):
        text = (HERE / f"python/{name}.lock").read_text(encoding="utf-8")
        locked |= dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))
    installed = json.loads((HERE / "node/package-lock.json").read_text(encoding="utf-8"))["packages"]
    of_node = {path.partition("/")[2]: package.get("version") for path, package in installed.items()}
    of_node["ai"] = f"{of_node['ai']} and {of_node['ai-sdk-6']}"
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (Node: )?`([^`]+)`.* \| ([0-9][^|]*) \|$", page, re.MULTILINE)
    assert len(rows) == 17
    for of_which, package, version in rows:
        assert (package, (of_node if of_which else locked)[package]) == (package, version)
