"""Tools on /v1/messages, with a scripted engine that generates tool calls in the formats of models."""

import json
from typing import Any

import pytest

from tests.helpers import ended_state, fresh_id, script
from tests.integration.test_messages import MANY, events_of
from tests.integration.test_tools import ARGUMENTS, CALL, TOOL
from worker_orcd.testing.harness import RunningWorker, wait_until

WEATHER = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}  # type: ignore[index]
EAGER = {**WEATHER, "eager_input_streaming": True}
OPEN_CALL = CALL.removesuffix("\n</tool_call>")
USER = {"role": "user", "content": "Hi."}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": ARGUMENTS}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}


def asked(text: str, **fields: Any) -> dict[str, Any]:
    """A request for which the scripted model generates this text."""
    messages = [{"role": "user", "content": script(text=text, token_ms=0)}]
    return {"messages": messages, "tools": [WEATHER], "max_tokens": MANY, **fields}


def answered(worker: RunningWorker, body: dict[str, Any]) -> dict[str, Any]:
    """A message."""
    answer = worker.client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    message: dict[str, Any] = answer.json()
    return message


def streamed(worker: RunningWorker, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream."""
    return events_of(worker.client.post("/v1/messages", json={**body, "stream": True}).text)


def blocks_in(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content blocks of a stream, with joined deltas. `stopped`: whether the block had its end."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "deltas": "", "stopped": False})
            case "content_block_delta":
                kind = event["delta"].pop("type")
                (text,) = event["delta"].values()
                blocks[event["index"]]["deltas"] += text
                blocks[event["index"]]["kind"] = kind
            case "content_block_stop":
                blocks[event["index"]]["stopped"] = True
    return blocks


@pytest.mark.parametrize("tool", [WEATHER, EAGER], ids=["whole", "eager"])
def test_thinking_text_and_calls_are_separate_blocks(worker: RunningWorker, tool: dict[str, Any]) -> None:
    """In a complete message and in a stream."""
    body = asked(f"<think>Hm.</think>\n\nLet me see. {CALL}", tools=[tool])
    message = answered(worker, body)
    thinking, text, use = message["content"]
    assert message["stop_reason"] == "tool_use"
    assert thinking == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text == {"type": "text", "text": "Let me see. "}
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "weather", ARGUMENTS)

    events = streamed(worker, body)
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    blocks = blocks_in(events)
    assert all(block["stopped"] for block in blocks)
    assert [block["kind"] for block in blocks] == ["thinking_delta", "text_delta", "input_json_delta"]
    assert [block["deltas"] for block in blocks[:2]] == ["Hm.", "Let me see. "]
    assert (blocks[2]["name"], blocks[2]["input"], json.loads(blocks[2]["deltas"])) == (
        "weather",
        {},
        ARGUMENTS,
    )
    parts = [event for event in events if event["type"] == "content_block_delta" and event["index"] == 2]
    assert (len(parts) > 10) if tool is EAGER else (len(parts) == 1)


def test_tool_results_are_part_of_the_next_prompt(worker: RunningWorker) -> None:
    """Each result becomes a message with the role `tool`. Thinking is passed to the chat template."""
    answer = script(text="Sunny.", token_ms=0)
    body = asked("x")
    body["messages"] = [
        USER,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, USE]},
        {
            "role": "user",
            "content": [
                {**RESULT, "content": [{"type": "text", "text": "20 C"}]},
                {"type": "text", "text": answer},
            ],
        },
    ]
    message = answered(worker, body)
    assert message["content"] == [{"type": "text", "text": "Sunny."}]
    chat = {
        "messages": [
            USER,
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "toolu_1", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
                ],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "name": "weather", "content": "20 C"},
            {"role": "user", "content": answer},
        ],
        "tools": [TOOL],
    }
    tokens = worker.client.post("/v1/chat/completions", json=chat).json()["usage"]["prompt_tokens"]
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == tokens
    del body["max_tokens"]
    counted = worker.client.post("/v1/messages/count_tokens", json=body)
    assert counted.json() == {"input_tokens": tokens}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=str)
def test_a_forced_call_has_an_input_that_its_schema_allows(
    worker: RunningWorker, choice: dict[str, str]
) -> None:
    """Even if the model would generate something else."""
    message = answered(worker, asked("Nothing.", tool_choice=choice, temperature=0, max_tokens=1500))
    (use,) = message["content"]
    assert (message["stop_reason"], use["type"]) == ("tool_use", "tool_use")
    assert use["input"]["city"] in ("Bern", "Oslo")


def test_tool_choice_is_respected(worker: RunningWorker) -> None:
    """The choices are no call, and at most one call."""
    assert answered(worker, asked(CALL, tool_choice={"type": "none"}))["content"] == [
        {"type": "text", "text": CALL}
    ]
    assert len(answered(worker, asked(CALL + CALL))["content"]) == 2
    single = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(answered(worker, asked(CALL + CALL, tool_choice=single))["content"]) == 1


@pytest.mark.parametrize("text", [OPEN_CALL[:-1], OPEN_CALL.replace("}", "]")], ids=["cut off", "malformed"])
def test_an_incomplete_call_is_text(worker: RunningWorker, text: str) -> None:
    """Anthropic's packages treat any part of an input as complete, so it is held back until the call is complete."""
    body = asked(text, max_tokens=len(text))
    message = answered(worker, body)
    assert message["stop_reason"] == "max_tokens"
    assert message["content"] == [{"type": "text", "text": text}]
    (block,) = blocks_in(streamed(worker, body))
    assert (block["type"], block["deltas"]) == ("text", text)


def test_an_incomplete_eager_call_has_no_end(worker: RunningWorker) -> None:
    """The input of an incomplete call is not JSON."""
    events = streamed(worker, asked(OPEN_CALL, max_tokens=len(OPEN_CALL) - 1, tools=[EAGER]))
    (block,) = blocks_in(events)
    assert (block["deltas"], block["stopped"]) == (json.dumps(ARGUMENTS)[:-1], False)
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("tool", [WEATHER, EAGER], ids=["whole", "eager"])
def test_a_cancel_in_the_middle_of_a_call_leaves_no_call(worker: RunningWorker, tool: dict[str, Any]) -> None:
    """If only the closing mark of a call is missing, the stream ends with an error and without the call's end."""
    name = fresh_id("msg")
    body = asked("x", stream=True, ignore_eos=True, tools=[tool])
    body["messages"][0]["content"] = script(text=OPEN_CALL, token_ms=2)
    lines: list[str] = []
    with worker.client.stream("POST", "/v1/messages", json=body, headers={"X-Job-Id": name}) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if line == "event: message_start":
                wait_until(
                    lambda: worker.record(name)["tokens_out"] > len(OPEN_CALL), what="all but its mark"
                )
                worker.cancel(name)
    events = events_of("\n".join(lines) + "\n\n")
    assert (events[-1]["type"], events[-1]["error"]["code"]) == ("error", "CANCELLED")
    assert not {"content_block_stop", "message_delta", "message_stop"} & {event["type"] for event in events}
    assert [block["deltas"] for block in blocks_in(events)] == [json.dumps(ARGUMENTS)[:-1]] * (tool is EAGER)
    record: Any = ended_state(worker, name)
    assert (record["state"], record["receipt"]["reason"]) == ("cancelled", "client")
    assert record["receipt"]["kv_cells_after"] == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools"),
        ({"tools": [{"name": "weather"}]}, "tools"),
        ({"tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        (
            {"tool_choice": {"type": "any"}, "tools": [{**WEATHER, "input_schema": {"type": "nonsense"}}]},
            "tools",
        ),
        ({"messages": [USER, {"role": "user", "content": [RESULT]}]}, "messages"),
        ({"messages": [USER, {"role": "user", "content": [USE]}]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": [USE, RESULT]}]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": [USE]}]}, "messages"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ],
    ids=str,
)
def test_unsupported_fields_are_refused_by_name(
    worker: RunningWorker, fields: dict[str, Any], param: str
) -> None:
    """Results without calls, and calls without results, are refused, too."""
    answer = worker.client.post("/v1/messages", json=asked("x") | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
