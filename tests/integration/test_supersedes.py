"""`supersedes`: a newer job replaces an older one, on `/execute` and on `/v1`."""

from typing import Any

import pytest

from tests.helpers import ended_state, fresh_id, in_prefill, script
from worker_orcd.testing.harness import RunningWorker, Stream


def superseded(worker: RunningWorker, stream: Stream, by: str) -> dict[str, Any]:
    """Wait for the end of a superseded job. Returns its record."""
    error = stream.finished().events[-1].data
    assert (error["code"], error["reason"]) == ("CANCELLED", "superseded")
    ended_state(worker, stream.job_id)
    record = worker.record(stream.job_id)
    assert record["receipt"]["reason"] == "superseded"
    assert record["superseded_by"] == by
    return record


def prefilling(worker: RunningWorker, prompt: str, key: str) -> Stream:
    """A job in the middle of its prompt that supersedes others."""
    stream = worker.execute(fresh_id(), prompt, supersedes=key).wait(lambda s: s.status is not None)
    in_prefill(worker, stream)
    return stream


def test_the_newest_starts_from_what_the_older_ones_computed(worker: RunningWorker) -> None:
    """As a user types: each job is stopped in the middle of its prompt, and none of that is computed again."""
    prompt, key = script(6000, row_ms=0.5), fresh_id("editor")
    typed = [prefilling(worker, prompt, key)]
    for letter in "ab":
        prompt += letter
        typed.append(prefilling(worker, prompt, key))
        computed = superseded(worker, typed[-2], typed[-1].job_id)["receipt"]
        assert computed["phase"] == "prefill"
        assert computed["kv_cells_warm"] == computed["prompt_tokens"]
        assert computed["cancel_correlation_id"] == typed[-1].headers["x-correlation-id"]
        assert worker.record(typed[-1].job_id)["prompt_tokens_cached"] == computed["prompt_tokens"]
    worker.cancel(typed[-1].job_id)
    assert typed[-1].finished().events[-1].data["reason"] == "client"
    metrics = worker.client.get("/metrics").text
    (count,) = [line for line in metrics.splitlines() if 'reason="superseded"' in line and "_total" in line]
    assert float(count.rpartition(" ")[2]) >= 2


@pytest.mark.parametrize(
    "refused", [{"max_tokens": 0}, {"supersedes": "no key"}, {"prompt": ""}, {"job_id": "the-old-one"}]
)
def test_a_refused_request_supersedes_nothing(worker: RunningWorker, refused: dict[str, Any]) -> None:
    """The older job runs to its end."""
    old = worker.execute("the-old-one", script(token_ms=20), supersedes="k", max_tokens=4).tokens_seen(1)
    body = {"job_id": fresh_id(), "prompt": "x", "supersedes": "k", **refused}
    assert worker.client.post("/execute", json=body).status_code in (400, 409)
    assert old.finished().events[-1].event == "end"


@pytest.mark.parametrize("way", ["field", "header"])
@pytest.mark.parametrize("api", ["chat/completions", "completions", "responses"])
def test_openais_api_supersedes_by_field_or_header(worker: RunningWorker, api: str, way: str) -> None:
    """A complete answer, which all `/v1` requests with this key and `/execute` share."""
    key, name = fresh_id("key"), fresh_id()
    old = worker.execute(fresh_id(), script(token_ms=5), supersedes=key, max_tokens=2000).tokens_seen(1)
    prompt = script(text="new")
    said: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": [{"role": "user", "content": prompt}], "n": 2},
        "completions": {"prompt": prompt, "n": 2},
        "responses": {"input": prompt},
    }
    headers = {"X-Job-Id": name} | ({"X-Supersedes": key} if way == "header" else {})
    answer = worker.client.post(
        f"/v1/{api}", json={**said[api], **({"supersedes": key} if way == "field" else {})}, headers=headers
    )
    assert answer.status_code == 200, answer.text
    assert answer.text.count('"new"') == (1 if api == "responses" else 2)
    superseded(worker, old, name)


def test_a_header_that_is_no_key_is_refused_by_its_name(worker: RunningWorker) -> None:
    """As `X-Job-Id` is."""
    body = {"messages": [{"role": "user", "content": "x"}]}
    answer = worker.client.post("/v1/chat/completions", json=body, headers={"X-Supersedes": "no key"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Supersedes"
