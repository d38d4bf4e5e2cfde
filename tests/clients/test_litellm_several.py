"""LiteLLM's proxy in front of two workers (docs/running.md)."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.conftest import prompt_for
from tests.clients.litellm_proxy import KEY, running_proxy
from tests.clients.test_litellm import ask, each_call, each_phase
from tests.clients.test_openai_python import MODEL, says, user
from tests.docs.blocks import blocks
from tests.helpers import at_rest, ended_state, fresh_id
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

pytestmark = [pytest.mark.needs("python-clients"), pytest.mark.nightly, pytest.mark.timeout(600)]

Workers = tuple[RunningWorker, RunningWorker]
CALLS = 12
"""Requests of which each worker gets some, nearly for sure: the proxy chooses at random."""


@pytest.fixture(scope="module")
def _workers() -> Iterator[Workers]:
    with running_worker() as one, running_worker() as other:
        yield one, other


@pytest.fixture
def workers(_workers: Workers) -> Iterator[Workers]:
    """Two workers on the scripted engine. Both must be at rest afterwards."""
    yield _workers
    for worker in _workers:
        at_rest(worker)


@pytest.fixture(scope="module")
def _proxy(_workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    shown = [block.text for block in blocks("docs/running.md") if block.text.startswith("model_list:")]
    (settings,) = shown
    for there, worker in zip(("http://127.0.0.1:8080", "http://127.0.0.1:8081"), _workers, strict=True):
        assert there in settings
        settings = settings.replace(there, worker.url)
    with running_proxy(tmp_path_factory.mktemp("litellm"), settings.replace("my-model", MODEL)) as url:
        yield url


@pytest.fixture
def proxy(_proxy: str, workers: Workers) -> str:
    """The base URL of the proxy, which is set up as the page says, in front of `workers`."""
    return _proxy


def client_of(proxy: str) -> openai.AsyncOpenAI:
    """A client, which sends nothing again."""
    return openai.AsyncOpenAI(base_url=proxy, api_key=KEY, max_retries=0)


def of(worker: RunningWorker, name: str) -> list[dict[str, Any]]:
    """The jobs of a worker whose ids begin so."""
    jobs = worker.client.get("/jobs?limit=1000").json()["jobs"]
    return [job for job in jobs if job["job_id"].startswith(name)]


def test_a_conversation_goes_on_at_any_worker(proxy: str, workers: Workers) -> None:
    """Each turn is answered, and both workers get some."""
    name = fresh_id("turn")

    async def talk() -> None:
        messages: list[Any] = []
        async with client_of(proxy) as client:
            for number in range(CALLS):
                messages += user(says(f"answer {number}"))
                named = {"X-Job-Id": f"{name}-{number}"}
                answer = await client.chat.completions.create(
                    model=MODEL, messages=messages, extra_headers=named
                )
                said = answer.choices[0].message.content
                assert said == f"answer {number}"
                messages.append({"role": "assistant", "content": said})

    asyncio.run(talk())
    assert sum(len(of(worker, f"{name}-")) for worker in workers) == CALLS
    assert all(of(worker, f"{name}-") for worker in workers)


@each_phase
@each_call
def test_clients_that_leave_stop_their_jobs_at_both_workers(
    proxy: str, workers: Workers, call: str, phase: str
) -> None:
    """All of them: those that are computed, and those that wait behind them."""
    name = fresh_id("left")

    counted = "prompt_tokens_processed" if phase == "prefill" else "tokens_out"

    def busy() -> bool:
        records = [of(worker, f"{name}-") for worker in workers]
        begun = all(any(record[counted] for record in each) for each in records)
        return begun and sum(map(len, records)) == CALLS

    async def leave() -> None:
        async with client_of(proxy) as client:
            asking = [
                asyncio.create_task(ask(client, call, prompt_for(phase), **{"X-Job-Id": f"{name}-{number}"}))
                for number in range(CALLS)
            ]
            await asyncio.to_thread(wait_until, busy, within_sec=60, what="jobs at both workers")
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(leave())
    for worker in workers:
        for job in of(worker, f"{name}-"):
            record = ended_state(worker, job["job_id"])
            assert (record["state"], record["receipt"]["reason"]) == ("cancelled", "disconnect")  # type: ignore[index]


@each_call
def test_a_cancel_at_every_worker_stops_the_job(proxy: str, workers: Workers, call: str) -> None:
    """Whichever has it. Where the proxy sends it again, nothing is computed."""
    name = fresh_id("stopped")

    def busy() -> bool:
        return any(job["prompt_tokens_processed"] for worker in workers for job in of(worker, name))

    async def stopped() -> None:
        async with client_of(proxy) as client:
            asking = asyncio.create_task(ask(client, call, prompt_for("prefill"), **{"X-Job-Id": name}))
            await asyncio.to_thread(wait_until, busy, within_sec=60, what="a job")
            for worker in workers:
                assert (await asyncio.to_thread(worker.cancel, name)).status_code == 202
            with pytest.raises(openai.APIError):
                await asking

    asyncio.run(stopped())
    for worker in workers:
        for job in of(worker, name):
            assert ended_state(worker, job["job_id"])["state"] == "cancelled"
            assert job["tokens_out"] == 0
