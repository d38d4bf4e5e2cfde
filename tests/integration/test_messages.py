"""Anthropic's Messages API (docs/anthropic.md)."""

import json
from typing import Any

import httpx2
import pytest

from tests.helpers import SLOW, ended_state, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, wait_until

MANY = 1000


def says(text: str) -> list[dict[str, str]]:
    """A conversation for which the scripted model generates this text."""
    return [{"role": "user", "content": script(text=text, token_ms=1)}]


def post(
    worker: RunningWorker, path: str = "", headers: dict[str, str] | None = None, **body: Any
) -> httpx2.Response:
    """A response to a request."""
    return worker.client.post(f"/v1/messages{path}", json=body, headers=headers)


def events_of(answer: str) -> list[dict[str, Any]]:
    """A stream's events. Checks that each event's name is its type."""
    blocks = [block.splitlines() for block in answer.split("\n\n") if block.startswith("event: ")]
    found = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(name == data["type"] for name, data in found)
    return [data for _, data in found]


def test_a_request_returns_a_message(worker: RunningWorker) -> None:
    """The message's id is the job's id."""
    prompt = says("Hello 👋")
    answer = post(worker, messages=prompt, max_tokens=MANY)
    body = answer.json()
    usage = body.pop("usage")
    assert answer.status_code == 200
    assert answer.headers["x-job-id"] == body["id"]
    assert answer.headers["request-id"] == answer.headers["x-correlation-id"]
    assert worker.record(body.pop("id"))["state"] == "completed"
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [{"type": "text", "text": "Hello 👋"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    assert usage["output_tokens"] == len("Hello 👋".encode())
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(prompt[0]["content"])


def test_cached_tokens_are_counted_separately(worker: RunningWorker) -> None:
    """As in Anthropic's API, `input_tokens` does not include cached tokens."""
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": script(500, text="ok")}],
        "max_tokens": MANY,
    }
    first, again = (post(worker, **asked).json()["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] < 400 < again["cache_read_input_tokens"]
    assert [used["input_tokens"] + used["cache_read_input_tokens"] for used in (first, again)] == [500, 500]


def test_system_and_blocks_are_part_of_the_prompt(worker: RunningWorker) -> None:
    """`count_tokens` counts them, too."""
    conversation: dict[str, Any] = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "yes"},
            *says("ok"),
        ],
    }
    tokens = len("\n".join(["Be brief.", "hi", "yes", conversation["messages"][2]["content"]]))
    usage = post(worker, **conversation, max_tokens=MANY).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == tokens
    assert post(worker, "/count_tokens", **conversation).json() == {"input_tokens": tokens}
    plain = conversation | {"system": "Be brief."}
    assert post(worker, "/count_tokens", **plain).json() == {"input_tokens": tokens}


@pytest.mark.parametrize(
    ("fields", "reason", "sequence", "text"),
    [
        ({"max_tokens": 2}, "max_tokens", None, "ab"),
        ({"max_tokens": 10**9}, "end_turn", None, "abcdef"),
        ({"stop_sequences": ["d"]}, "stop_sequence", "d", "abc"),
        ({"stop_sequences": ["x", "de"]}, "stop_sequence", None, "abc"),
    ],
)
def test_stop_reason_is_the_reason_of_the_end(
    worker: RunningWorker, fields: dict[str, Any], reason: str, sequence: str | None, text: str
) -> None:
    """`stop_reason` is right. A `max_tokens` that is too high is reduced to what fits."""
    body = post(worker, messages=says("abcdef"), **{"max_tokens": MANY, **fields}).json()
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    assert body["content"] == [{"type": "text", "text": text}]


def test_a_message_streams(worker: RunningWorker) -> None:
    """The stream has Anthropic's events in the right order."""
    events = events_of(post(worker, messages=says("abc"), max_tokens=MANY, stream=True).text)
    kinds = [event["type"] for event in events]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert "".join(event["delta"]["text"] for event in events[2:-3]) == "abc"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 3


def test_closing_a_stream_stops_its_job(worker: RunningWorker) -> None:
    """A disconnect stops the job, as with any stream."""
    name = fresh_id("msg")
    asked = {"messages": [{"role": "user", "content": SLOW}], "max_tokens": MANY, "stream": True}
    with worker.client.stream("POST", "/v1/messages", json=asked, headers={"X-Job-Id": name}) as answer:
        lines = answer.iter_lines()
        while "content_block_delta" not in next(lines):
            pass
    receipt: Any = ended_state(worker, name)["receipt"]
    assert (receipt["reason"], receipt["phase"]) == ("disconnect", "decode")


def test_a_stream_cancelled_by_another_client_ends_with_an_error(worker: RunningWorker) -> None:
    """The cancel uses the id in `message_start`. The stream never ends with `message_stop`."""
    asked = {"messages": [{"role": "user", "content": SLOW}], "max_tokens": MANY, "stream": True}
    with worker.client.stream("POST", "/v1/messages", json=asked) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: message_start"
        name = json.loads(next(lines).removeprefix("data: "))["message"]["id"]
        wait_until(lambda: (worker.record(name).get("tokens_out") or 0) > 3, what="some tokens")
        worker.cancel(name)
        events = events_of("\n".join(["", *lines]))
    assert events[-1]["type"] == "error"
    assert (events[-1]["error"]["type"], events[-1]["error"]["code"]) == ("cancelled_error", "CANCELLED")
    assert events[-1]["error"]["usage"]["output_tokens"] > 3
    assert "message_stop" not in {event["type"] for event in events}


def test_a_cancelled_non_streaming_request_is_400(worker: RunningWorker) -> None:
    """No client retries a 400. The same holds if the cancel arrives first."""
    name = fresh_id("msg")
    worker.cancel(name)
    answer = post(worker, headers={"X-Job-Id": name}, messages=says("x"), max_tokens=MANY)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (400, "cancelled_error", "CANCELLED")
    assert answer.headers["x-should-retry"] == "false"


def test_a_retry_of_a_cancelled_request_is_answered_as_cancelled(worker: RunningWorker) -> None:
    """The retry computes nothing."""
    name = fresh_id("msg")
    asked = {"messages": [{"role": "user", "content": SLOW}], "max_tokens": MANY, "stream": True}
    with worker.client.stream("POST", "/v1/messages", json=asked, headers={"X-Job-Id": name}) as answer:
        worker.cancel(name)
        assert events_of("\n".join(answer.iter_lines()) + "\n\n")[-1]["type"] == "error"
    again = post(worker, headers={"X-Job-Id": name}, messages=says("x"), max_tokens=MANY)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "CANCELLED")
    assert worker.record(name)["tokens_out"] == 0


@pytest.mark.parametrize(
    ("body", "status", "kind", "param"),
    [
        ({}, 400, "invalid_request_error", "messages"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_request_error", "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            400,
            "invalid_request_error",
            "messages",
        ),
        ({"system": [{"type": "image"}]}, 400, "invalid_request_error", "system"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}
                ]
            },
            400,
            "invalid_request_error",
            "messages",
        ),
        ({"tools": [{"type": "web_search", "name": "x"}]}, 400, "invalid_request_error", "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400, "invalid_request_error", "thinking"),
        ({"stop_sequences": ["x" * 40]}, 400, "invalid_request_error", "stop_sequences"),
        ({"stop_sequences": ["x" * 5000]}, 400, "invalid_request_error", "stop_sequences"),
        ({"model": "claude-sonnet-4-5"}, 404, "not_found_error", "model"),
    ],
    ids=str,
)
def test_errors_have_anthropics_shape(
    worker: RunningWorker, body: dict[str, Any], status: int, kind: str, param: str
) -> None:
    """An error has the worker's code, and this API's name of the faulty field."""
    asked = {"messages": says("x"), "max_tokens": MANY, **body} if body else {"max_tokens": MANY}
    answer = post(worker, **asked)
    said = answer.json()
    assert (answer.status_code, said["type"], said["error"]["type"]) == (status, "error", kind), said
    assert (said["error"]["code"], said["error"]["param"]) == ("INVALID_REQUEST", param)
    assert said["request_id"] == answer.headers["request-id"]


def test_a_prompt_that_does_not_fit_has_a_message_that_agents_recognize(worker: RunningWorker) -> None:
    """Agents shorten the conversation when they find these words."""
    answer = post(worker, messages=[{"role": "user", "content": "x" * 30_000}], max_tokens=MANY)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("prompt is too long: ")
