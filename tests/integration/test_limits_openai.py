"""Limits of OpenAI's API: `max_tokens` is cut to what fits, and errors have the wording that clients look for."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.helpers import fresh_id, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

CONTEXT = 8192
"""Of a job of the scripted engine."""


def asked(worker: RunningWorker, api: str, prompt: str, **more: Any) -> httpx2.Response:
    """A request with this prompt."""
    message = [{"role": "user", "content": prompt}]
    said = {"chat/completions": "messages", "completions": "prompt", "responses": "input"}[api]
    body = {said: prompt if api == "completions" else message, **more}
    return worker.client.post(f"/v1/{api}", json=body, headers={"X-Job-Id": fresh_id("limits")})


APIS = ("chat/completions", "completions", "responses")
MOST = {
    "chat/completions": "max_completion_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
}


@pytest.mark.parametrize("most", [4096, CONTEXT, 10**9])
@pytest.mark.parametrize("api", APIS)
def test_more_tokens_than_fit_are_cut_to_what_fits(worker: RunningWorker, api: str, most: int) -> None:
    """Many agents send 4,096 by default (contract, section 1)."""
    prompt = script(5000, text="ok", row_ms=0)
    answer = asked(worker, api, prompt, **{MOST[api]: most})
    assert answer.status_code == 200, answer.text
    record = worker.record(answer.headers["x-job-id"])
    assert record["max_tokens"] == min(most, CONTEXT - record["prompt_tokens"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", APIS)
def test_a_prompt_that_does_not_fit_says_so_in_the_words_that_clients_look_for(
    worker: RunningWorker, api: str, stream: bool
) -> None:
    """Code and both numbers; LiteLLM and coding agents then shorten the conversation."""
    answer = asked(worker, api, "x" * 35_000, stream=stream)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    words = r"This model's maximum context length is 8192 tokens\. However, your prompt has 35\d\d\d tokens"
    assert re.match(words, error["message"])
    assert (
        error["param"] == {"chat/completions": "messages", "completions": "prompt", "responses": "input"}[api]
    )


def answers(worker: RunningWorker) -> bool:
    """Whether the worker accepts connections."""
    try:
        return worker.client.get("/livez").status_code == 200
    except httpx2.TransportError:
        return False


def test_a_prompt_that_turns_out_not_to_fit_has_the_same_code_in_its_stream() -> None:
    """While the model is loaded, jobs are accepted and wait."""
    with (
        running_worker(wait=False, env={"WORKER_ORCD_SCRIPTED_LOAD_SEC": "2"}) as loading,
        ThreadPoolExecutor(len(APIS)) as pool,
    ):
        wait_until(lambda: answers(loading), what="a worker that listens")
        asking = [pool.submit(asked, loading, api, "x" * 9000, stream=True) for api in APIS]
    for answer in (request.result() for request in asking):
        assert answer.status_code == 200
        assert '"context_length_exceeded"' in answer.text
        assert "[DONE]" not in answer.text


def test_an_operators_ceiling_is_one_on_each_api() -> None:
    """`--max-tokens-out` cuts on `/v1` and refuses on `/execute`; `--max-prompt-chars` refuses on both."""
    with running_worker(max_tokens_out=7, max_prompt_chars=100) as worker:
        answer = asked(worker, "completions", script(text="a" * 20), max_tokens=4096)
        assert answer.json()["usage"]["completion_tokens"] == 7
        refused = worker.execute(fresh_id(), max_tokens=8).finished()
        assert (refused.status, refused.refusal and refused.refusal["param"]) == (400, "max_tokens")
        for api in APIS:
            assert asked(worker, api, "x" * 101).status_code == 400


def test_a_prompts_characters_are_those_of_its_text_however_it_travels() -> None:
    """A conversation travels as JSON, in which quotes and line feeds are longer; the limit and narration count text."""
    text = '"\n\\é' * 25
    with running_worker(max_prompt_chars=100) as worker:
        for api in APIS:
            assert asked(worker, api, text, **{MOST[api]: 1}).status_code == 200
            assert asked(worker, api, text + "x", **{MOST[api]: 1}).status_code == 400
        two = [{"role": "system", "content": text[:60]}, {"role": "user", "content": text[60:]}]
        assert (
            worker.client.post("/v1/chat/completions", json={"messages": two, "max_tokens": 1}).status_code
            == 200
        )
        starts = [event for event in worker.narration() if event["action"] == "execute_start"]
        assert {event["prompt_chars"] for event in starts} == {100}
        assert {event["prompt_sha256"] for event in starts} == {hashlib.sha256(text.encode()).hexdigest()}
        assert len(starts) == 4
