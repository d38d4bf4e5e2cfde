"""Constrained output over HTTP, with the scripted engine: its script violates the constraint."""

import json
import signal
from typing import Any

import pytest

from tests.helpers import fresh_id, script
from worker_orcd.testing.harness import RunningWorker, Stream, wait_until

NUMBER = {"type": "array", "items": {"const": 7}, "minItems": 3, "maxItems": 3}
CHAT = {"messages": [{"role": "user", "content": "Say something."}], "temperature": 0}
PROPERTIES: dict[str, Any] = {"properties": {f"p{number}": {} for number in range(4000)}}
"""Takes longer to compile than it may."""


def test_a_job_says_what_its_constraint_allows_and_ends(worker: RunningWorker) -> None:
    """Without the constraint, the scripted engine would generate something else, and continue."""
    schema = worker.execute(fresh_id(), json_schema=NUMBER, max_tokens=400).finished()
    assert json.loads(schema.text) == [7, 7, 7]
    grammar = worker.execute(fresh_id(), script(text="nobody"), grammar='root ::= "yes" | "no"').finished()
    assert grammar.text == "no"
    for stream in (schema, grammar):
        assert stream.terminal is not None
        assert stream.terminal.data["stop_reason"] == "stop"


def test_a_cancel_in_the_middle_is_a_cancel(worker: RunningWorker) -> None:
    """Whether the output is complete or not."""
    stream = worker.execute(fresh_id(), script(token_ms=20), grammar='root ::= "a"{1000}')
    stream.tokens_seen(3)
    worker.client.post("/cancel", json={"job_id": stream.job_id})
    stream.finished().assert_whole()
    assert stream.terminal is not None
    assert stream.terminal.data["code"] == "CANCELLED"
    assert set(stream.text) == {"a"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/execute", {"job_id": "bad", "prompt": "x", "json_schema": {"type": "strin"}}, "json_schema"),
        ("/execute", {"job_id": "bad", "prompt": "x", "grammar": "root ::= nothing"}, "grammar"),
        ("/execute", {"job_id": "bad", "prompt": "x", "grammar": "a", "json_schema": {}}, "grammar"),
        ("/execute", {"job_id": "bad", "prompt": "x", "json_schema": PROPERTIES}, "json_schema"),
        ("/v1/chat/completions", {**CHAT, "grammar": "root ::= nothing"}, "grammar"),
        ("/v1/chat/completions", {**CHAT, "guided_regex": "("}, "guided_regex"),
        (
            "/v1/chat/completions",
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
        ),
        ("/v1/completions", {"prompt": "x", "guided_choice": ["a"], "grammar": "b"}, "guided_choice"),
        (
            "/v1/responses",
            {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "text.format",
        ),
    ],
)
def test_a_bad_constraint_is_400_by_its_field(
    worker: RunningWorker, path: str, body: dict[str, Any], param: str
) -> None:
    """In each API's fields."""
    answer = worker.client.post(path, json=body, timeout=60)
    if path == "/execute" and answer.status_code == 200:
        # The answer had begun, because the refusal took longer than a second.
        assert f'"param":"{param}"' in answer.text.replace(" ", "")
        assert "INVALID_REQUEST" in answer.text
        return
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"


def test_a_chat_is_constrained_too(worker: RunningWorker) -> None:
    """And ends with `stop`."""
    asked = {
        **CHAT,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBER}},
    }
    [choice] = worker.client.post("/v1/chat/completions", json=asked, timeout=60).json()["choices"]
    assert json.loads(choice["message"]["content"]) == [7, 7, 7]
    assert choice["finish_reason"] == "stop"


def test_a_constrained_job_goes_on_after_its_engine_was_killed(battered: RunningWorker) -> None:
    """No token is lost or repeated: the grammar is replayed from the beginning."""
    restarts = battered.health()["engine_restarts"]
    stream = battered.execute(
        fresh_id(), script(token_ms=20), grammar='root ::= [ab]{60} "."', max_tokens=200
    )
    stream.tokens_seen(10)
    battered.signal_engine(signal.SIGKILL)
    stream.finished(within_sec=60).assert_whole()
    assert stream.text == "a" * 60 + "."
    assert battered.health()["engine_restarts"] == restarts + 1


def test_hostile_grammars_hold_up_no_neighbour(worker: RunningWorker) -> None:
    """A stream gets its tokens beside constraints that cannot be compiled or whose masks get slower and slower."""
    neighbour = worker.execute(fresh_id(), script(token_ms=5), max_tokens=2000)
    neighbour.tokens_seen(5)
    hostile: list[Stream] = [
        *(worker.execute(fresh_id(), json_schema=PROPERTIES, max_tokens=50) for _ in range(3)),
        *(
            worker.execute(fresh_id(), grammar='root ::= s\ns ::= s s s | s s | "a" | "b"', max_tokens=2000)
            for _ in range(3)
        ),
    ]
    before = len(neighbour.tokens)
    wait_until(lambda: len(neighbour.tokens) > before + 100, within_sec=60, what="a neighbour's tokens")
    restarts = worker.health()["engine_restarts"]
    for stream in [*hostile, neighbour]:
        worker.client.post("/cancel", json={"job_id": stream.job_id})
    for stream in [*hostile, neighbour]:
        stream.finished(within_sec=60)
    assert worker.health()["engine_restarts"] == restarts
