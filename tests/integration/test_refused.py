"""A request is refused, its cancel follows, the corrected request runs (contract, section 3)."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.helpers import SLOW, ended_state, fresh_id, queued, script
from worker_orcd.testing.harness import RunningWorker

LARGE = "x" * (1 << 20)
Ask = Callable[[RunningWorker, str], httpx2.Response]
"""Send a request that is refused, for the job with this id."""


def execute(**fields: Any) -> Ask:
    """`POST /execute` with these fields, the id before them."""
    return lambda worker, job_id: worker.client.post("/execute", json={"job_id": job_id, **fields})


def raw(before: str, after: str = "") -> Ask:
    """`POST /execute` with a body in which the id stands between these two."""
    return lambda worker, job_id: worker.client.post(
        "/execute", content=f'{before}"job_id": "{job_id}"{after}'.encode()
    )


def elsewhere(method: str, path: str) -> Ask:
    """A job's request with another method, or to another path."""
    return lambda worker, job_id: worker.client.request(method, path, json={"job_id": job_id, "prompt": "x"})


def chunked(worker: RunningWorker, job_id: str) -> httpx2.Response:
    """A body whose length is not declared, and whose id comes last."""

    def body() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(40):
            yield b"y" * (1 << 16)
        yield f'", "job_id": "{job_id}"}}'.encode()

    return worker.client.post("/execute", content=body())


def openai(path: str, body: dict[str, Any]) -> Ask:
    """A request of OpenAI's API; its id is in a header."""
    return lambda worker, job_id: worker.client.post(f"/v1/{path}", json=body, headers={"X-Job-Id": job_id})


SAYS = [{"role": "user", "content": "x"}]
REFUSED: dict[str, tuple[int, Ask]] = {
    "a wrong value": (400, execute(prompt="x", temperature=9)),
    "an unknown field": (400, execute(prompt="x", nonsense={"job_id": "another"})),
    "no prompt": (400, execute()),
    "broken JSON": (400, raw("{", ', "prompt": "x"')),
    "the id last": (400, raw('{"prompt": "", ', "}")),
    "another's id in the prompt": (400, raw('{"prompt": "\\"job_id\\": \\"b\\"", "top_p": 7, ', "}")),
    "a wrong path": (404, elsewhere("POST", "/execute/")),
    "a mistyped path": (404, elsewhere("POST", "/excute")),
    "a wrong method": (405, elsewhere("PUT", "/execute")),
    "a large body": (413, execute(prompt=LARGE)),
    "a large body, the id last": (413, raw(f'{{"prompt": "{LARGE}", ', "}")),
    "a large body in chunks": (413, chunked),
    "a chat": (400, openai("chat/completions", {"messages": SAYS, "n": 0})),
    "a chat with another model": (404, openai("chat/completions", {"messages": SAYS, "model": "another"})),
    "a large chat": (413, openai("chat/completions", {"messages": [{"role": "user", "content": LARGE}]})),
    "a completion": (400, openai("completions", {"prompt": []})),
    "a response": (400, openai("responses", {"input": "x", "top_p": 7})),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_corrected_request_runs(worker: RunningWorker, kind: str) -> None:
    """Whatever the refusal, and however often the cancel is repeated."""
    status, ask = REFUSED[kind]
    job_id = fresh_id("corrected")
    answer = ask(worker, job_id)
    assert answer.status_code == status, answer.text
    for _ in range(2):
        assert worker.cancel(job_id).status_code == 202
    assert worker.execute(job_id, script(text="ok")).finished().text == "ok"
    # Once a request is accepted, the refusal has no effect any more.
    assert ended_state(worker, job_id)["state"] == "completed"


def test_the_id_in_a_text_is_nobodys(worker: RunningWorker) -> None:
    """A cancel is remembered if its id only occurs in the prompt of a refused request."""
    job_id = fresh_id("spoken-of")
    body = json.dumps({"job_id": fresh_id(), "prompt": f'"job_id": "{job_id}"', "top_p": 7})
    assert worker.client.post("/execute", content=body.encode()).status_code == 400
    worker.cancel(job_id)
    stream = worker.execute(job_id, script(text="no")).finished()
    assert [event.data["code"] for event in stream.events] == ["CANCELLED"]


@pytest.mark.parametrize("api", ["execute", "v1"])
def test_a_request_that_a_full_queue_refused_runs_when_it_comes_again(
    narrow: RunningWorker, api: str
) -> None:
    """Its cancel arrives after the refusal."""
    first = narrow.execute(fresh_id("full"), SLOW).tokens_seen(1)
    others = [first, *(queued(narrow, narrow.execute(fresh_id("full"), SLOW)) for _ in range(2))]
    job_id = fresh_id("corrected")
    ask = execute(prompt="x") if api == "execute" else openai("chat/completions", {"messages": SAYS})
    assert ask(narrow, job_id).status_code == 429
    narrow.cancel(job_id)
    for other in others:
        narrow.cancel(other.job_id)
        other.finished()
    assert narrow.execute(job_id, script(text="ok")).finished().text == "ok"


def test_a_cancel_that_was_before_the_refused_request_still_waits(worker: RunningWorker) -> None:
    """It is for a request that has not arrived yet."""
    job_id = fresh_id("overtaken")
    worker.cancel(job_id)
    assert execute(prompt="x", temperature=9)(worker, job_id).status_code == 400
    stream = worker.execute(job_id, script(text="no")).finished()
    assert [event.data["code"] for event in stream.events] == ["CANCELLED"]
