"""LiteLLM's router and its proxy (docs/clients.md)."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.conftest import PAGE, accepted, as_here, in_phase, next_job, prompt_for
from tests.clients.litellm_proxy import KEY, running_proxy
from tests.clients.puppet import Puppet, python, running_puppet
from tests.clients.test_openai_python import MODEL, cancelled, says, user
from tests.docs.blocks import blocks
from tests.helpers import fresh_id
from worker_orcd.testing.harness import RunningWorker

pytestmark = [pytest.mark.needs("python-clients"), pytest.mark.timeout(600)]
each_call = pytest.mark.parametrize("call", ["whole", "stream"])
each_phase = pytest.mark.parametrize("phase", ["prefill", "decode"])


# Its router.


@pytest.fixture(scope="module")
def _router(_served: RunningWorker) -> Iterator[Puppet]:
    with running_puppet(python(), "litellm-router", _served.url) as puppet:
        yield puppet


@pytest.fixture
def router(_router: Puppet, served: RunningWorker) -> Puppet:
    """A router with a fallback and retries, connected to `served`."""
    return _router


@each_call
def test_the_router_is_answered(router: Puppet, call: str) -> None:
    """With the text that the model generates."""
    name = fresh_id("routed")
    router.ask(call, name, says("Hello 👋"))
    assert router.outcome(name)["text"] == "Hello 👋"


@each_phase
@each_call
def test_stopping_a_call_of_the_router_stops_its_job(
    router: Puppet, served: RunningWorker, call: str, phase: str
) -> None:
    """And nothing is sent to its fallback."""
    before = accepted(served)
    name = fresh_id("stopped")
    router.ask(call, name, prompt_for(phase))
    in_phase(served, name, phase)
    router.stop(name)
    assert cancelled(served, name, "disconnect")["phase"] == phase
    router.outcome(name)
    assert accepted(served) == before + 1


@pytest.mark.parametrize(
    ("call", "phase", "jobs"),
    [("whole", "prefill", 2), ("whole", "decode", 2), ("stream", "prefill", 2), ("stream", "decode", 1)],
)
def test_the_router_sends_a_cancelled_request_to_its_fallback(
    router: Puppet, served: RunningWorker, call: str, phase: str, jobs: int
) -> None:
    """If there was no token yet. So each of its jobs has to be cancelled."""
    before = accepted(served)
    name = fresh_id("again")
    router.ask(call, name, prompt_for(phase), job_id=False)
    seen: list[str] = []
    for _ in range(jobs):
        seen.append(next_job(served, seen))
        in_phase(served, seen[-1], phase)
        served.cancel(seen[-1])
    assert "raised" in router.outcome(name)
    assert accepted(served) == before + jobs


@each_phase
@each_call
def test_without_fallbacks_the_router_sends_nothing_again(
    router: Puppet, served: RunningWorker, call: str, phase: str
) -> None:
    """This call turns them off."""
    before = accepted(served)
    name = fresh_id("once")
    router.ask(call, name, prompt_for(phase), job_id=False, disable_fallbacks=True)
    job = next_job(served, [])
    in_phase(served, job, phase)
    served.cancel(job)
    assert "raised" in router.outcome(name)
    assert accepted(served) == before + 1


@each_call
def test_what_the_router_sends_again_by_the_same_id_computes_nothing(
    router: Puppet, served: RunningWorker, call: str
) -> None:
    """Each is answered as cancelled, however often it comes."""
    before = accepted(served)
    name = fresh_id("named")
    router.ask(call, name, prompt_for("prefill"))
    in_phase(served, name, "prefill")
    served.cancel(name)
    assert "raised" in router.outcome(name)
    assert accepted(served) >= before + 2
    record = served.record(name)
    assert (record["state"], record["prompt_tokens_processed"], record["tokens_out"]) == ("cancelled", 0, 0)


# Its proxy.


@pytest.fixture(scope="module")
def _proxy(_served: RunningWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (settings,) = (block.text for block in blocks(PAGE) if block.language == "yaml")
    with running_proxy(tmp_path_factory.mktemp("litellm"), as_here(settings, _served)) as url:
        yield url


@pytest.fixture
def proxy(_proxy: str, served: RunningWorker) -> str:
    """The base URL of LiteLLM's proxy, which is set up as the page says, in front of `served`."""
    return _proxy


async def ask(client: openai.AsyncOpenAI, call: str, prompt: str, **more: str) -> None:
    """Read an answer to its end."""
    asking = client.chat.completions.create(
        model=MODEL, messages=user(prompt), stream=call == "stream", extra_headers=more
    )
    answer = await asking
    if isinstance(answer, openai.AsyncStream):
        async for _ in answer:
            pass


def test_a_client_of_the_proxy_is_answered(proxy: str, served: RunningWorker) -> None:
    """Whole and streamed."""
    with openai.OpenAI(base_url=proxy, api_key=KEY, max_retries=0) as client:
        asked: Any = {"model": MODEL, "messages": user(says("Hello 👋"))}
        assert client.chat.completions.create(**asked).choices[0].message.content == "Hello 👋"
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello 👋"


@each_phase
@each_call
def test_a_client_of_the_proxy_that_leaves_stops_its_job(
    proxy: str, served: RunningWorker, call: str, phase: str
) -> None:
    """The job has the id that the client chose."""
    name = fresh_id("proxied")

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=proxy, api_key=KEY, max_retries=0) as client:
            asking = asyncio.create_task(ask(client, call, prompt_for(phase), **{"X-Job-Id": name}))
            await asyncio.to_thread(in_phase, served, name, phase)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(leave())
    assert cancelled(served, name, "disconnect")["phase"] == phase


@each_phase
@each_call
def test_a_request_of_the_proxy_that_is_cancelled_from_elsewhere_is_not_sent_again(
    proxy: str, served: RunningWorker, call: str, phase: str
) -> None:
    """Neither by the proxy nor by OpenAI's package in front of it."""
    before = accepted(served)

    async def asked() -> None:
        async with openai.AsyncOpenAI(base_url=proxy, api_key=KEY) as client:
            asking = asyncio.create_task(ask(client, call, prompt_for(phase)))
            job = await asyncio.to_thread(next_job, served, [])
            await asyncio.to_thread(in_phase, served, job, phase)
            await asyncio.to_thread(served.cancel, job)
            await asking

    with pytest.raises(openai.BadRequestError if call == "whole" else openai.APIError, match="cancelled by"):
        asyncio.run(asked())
    assert accepted(served) == before + 1
