"""Stored responses: `previous_response_id`, deletion, and input items."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import SLOW, ended_state, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

ANNA, BERTA = "anna-0123456789abcdef", "berta-0123456789abcdef"


def says(text: str) -> str:
    """An input that makes the model generate this text."""
    return script(text=text, token_ms=1)


def respond(worker: RunningWorker, input_: Any, **fields: Any) -> dict[str, Any]:
    """A response."""
    answer = worker.client.post("/v1/responses", json={"input": input_, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def refusal(worker: RunningWorker, **fields: Any) -> dict[str, Any]:
    """The error of a request that is refused."""
    answer = worker.client.post("/v1/responses", json={"input": "x", **fields})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def texts(worker: RunningWorker, response: dict[str, Any], query: str = "order=asc") -> list[str]:
    """The texts of a response's input items, each with its role."""
    page = worker.client.get(f"/v1/responses/{response['id']}/input_items?{query}").json()
    return [f"{item['role']}: {''.join(part['text'] for part in item['content'])}" for item in page["data"]]


def test_a_response_is_continued_with_all_that_was_said(worker: RunningWorker) -> None:
    """Across several responses, without their instructions. The model gets exactly these messages."""
    first_input, second_input, third_input = says("one"), says("two"), says("three")
    first = respond(worker, first_input, instructions="Be brief.")
    second = respond(worker, second_input, previous_response_id=first["id"])
    third = respond(
        worker,
        [{"role": "user", "content": [{"type": "input_text", "text": third_input}]}],
        previous_response_id=second["id"],
    )
    assert third["previous_response_id"] == second["id"]
    assert third["output"][0]["content"][0]["text"] == "three"
    said = [first_input, "one", second_input, "two", third_input]
    assert third["usage"]["input_tokens"] == len("\n".join(said))
    roles = ["user", "assistant", "user", "assistant", "user"]
    assert texts(worker, third) == [f"{role}: {text}" for role, text in zip(roles, said, strict=True)]
    other = respond(worker, says("other"), previous_response_id=first["id"])
    assert len(texts(worker, other)) == 3, "a response can be continued more than once"


def test_what_was_said_until_a_cancel_is_continued(worker: RunningWorker) -> None:
    """A response without text becomes an empty message. A response that has not ended is refused."""
    name, silent = fresh_id("resp"), fresh_id("resp")
    worker.cancel(silent)  # Comes first, and wins.
    for job_id in (name, silent):
        asked = {"input": SLOW, "background": True}
        worker.client.post("/v1/responses", json=asked, headers={"X-Job-Id": job_id})
    wait_until(lambda: (worker.record(name).get("tokens_out") or 0) > 3, what="some tokens")
    refused = refusal(worker, previous_response_id=name)
    assert (refused["param"], refused["code"]) == ("previous_response_id", "INVALID_REQUEST")
    worker.cancel(name)
    ended_state(worker, name)
    stopped = worker.client.get(f"/v1/responses/{name}").json()
    said = stopped["output"][0]["content"][0]["text"]
    assert said.startswith("w")
    continued = respond(worker, says("ok"), previous_response_id=name)
    assert texts(worker, continued)[1] == f"assistant: {said}"
    assert texts(worker, respond(worker, says("ok"), previous_response_id=silent))[1] == "assistant: "


def test_what_is_not_kept_cannot_be_continued(worker: RunningWorker) -> None:
    """Unknown, not stored, deleted, refused, or not a response: all get the same answer with OpenAI's code."""
    unstored = respond(worker, says("x"), store=False)["id"]
    deleted = respond(worker, says("x"))["id"]
    worker.client.delete(f"/v1/responses/{deleted}")
    refused = fresh_id("refused")
    worker.client.post("/v1/responses", json={"input": "x" * 30_000}, headers={"X-Job-Id": refused})
    job = worker.execute(fresh_id(), max_tokens=2).finished().job_id
    live = fresh_id("unstored")
    asked = {"input": SLOW, "store": False, "stream": True}
    with worker.client.stream("POST", "/v1/responses", json=asked, headers={"X-Job-Id": live}):
        for name in ("resp_unknown", unstored, deleted, refused, job, live):
            error = refusal(worker, previous_response_id=name)
            assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
            assert error["message"] == f"Previous response with id '{name}' not found."


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """A worker with two keys."""
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{ANNA}\n{BERTA}\n")
    with running_worker(api_key_file=str(keys)) as worker:
        yield worker


def test_another_keys_response_looks_like_an_unknown_one(guarded: RunningWorker) -> None:
    """It cannot be continued, listed or deleted."""
    anna, berta = ({"Authorization": f"Bearer {key}"} for key in (ANNA, BERTA))
    client = guarded.client
    name = client.post("/v1/responses", json={"input": says("secret")}, headers=anna).json()["id"]
    asked = {"input": says("x"), "previous_response_id": name}
    refused = client.post("/v1/responses", json=asked, headers=berta)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
    for method, path in (("GET", f"/v1/responses/{name}/input_items"), ("DELETE", f"/v1/responses/{name}")):
        foreign = client.request(method, path, headers=berta)
        unknown = client.request(method, path.replace(name, "resp_unknown"), headers=berta)
        assert (foreign.status_code, foreign.json()) == (unknown.status_code, unknown.json())
        assert foreign.status_code == 404
    assert client.post("/v1/responses", json=asked, headers=anna).status_code == 200


def test_a_deleted_response_is_gone_and_its_record_stays(worker: RunningWorker) -> None:
    """No endpoint returns its text. A response that continues it stays complete."""
    first = respond(worker, says("one"))
    second = respond(worker, says("two"), previous_response_id=first["id"])
    path = f"/v1/responses/{first['id']}"
    answer = worker.client.delete(path)
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": first["id"], "object": "response", "deleted": True},
    )
    for gone in (path, f"{path}/input_items", f"/jobs/{first['id']}/events"):
        assert worker.client.get(gone).status_code == 404
    assert worker.client.delete(path).status_code == 404
    assert worker.record(first["id"])["state"] == "completed"
    assert len(texts(worker, second)) == 3
    assert (
        texts(worker, respond(worker, says("three"), previous_response_id=second["id"]))[1]
        == "assistant: one"
    )


def test_deleting_a_live_response_stops_it(worker: RunningWorker) -> None:
    """The answer is sent when it has stopped; it has a receipt."""
    name = fresh_id("resp")
    asked = {"input": SLOW, "background": True}
    worker.client.post("/v1/responses", json=asked, headers={"X-Job-Id": name})
    assert worker.client.get(f"/v1/responses/{name}/input_items").json()["data"] != []
    assert worker.client.delete(f"/v1/responses/{name}").json()["deleted"] is True
    record = worker.record(name)
    assert (record["state"], record["receipt"]["reason"]) == ("cancelled", "client")
    assert worker.client.get(f"/v1/responses/{name}").status_code == 404


def test_items_come_in_pages(worker: RunningWorker) -> None:
    """As OpenAI's package iterates over them, in either order."""
    messages = [{"role": "user", "content": f"message {number}"} for number in range(4)]
    answer = respond(worker, [*messages, {"role": "user", "content": says("ok")}])
    path = f"/v1/responses/{answer['id']}/input_items"
    whole = worker.client.get(path).json()
    assert whole["object"] == "list"
    assert (len(whole["data"]), whole["has_more"]) == (5, False)
    ids = [item["id"] for item in whole["data"]]
    assert (whole["first_id"], whole["last_id"]) == (ids[0], ids[-1])
    assert len(set(ids)) == 5
    seen, after = [], ""
    while True:
        page = worker.client.get(f"{path}?limit=2&after={after}").json()
        seen += [item["id"] for item in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == ids
    assert [item["id"] for item in worker.client.get(f"{path}?order=asc").json()["data"]] == ids[::-1]
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=msg_unknown"):
        refused = worker.client.get(f"{path}?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])
