"""Tools with the bundled model, whose chat template knows none."""

import json

import pytest

from worker_orcd.testing.harness import RunningWorker

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "maximum": 9, "minimum": 1},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Forecast", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "maxProperties": 0}}},
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_of_the_bundled_model_is_valid(real_worker: RunningWorker, choice: object) -> None:
    """It is too small to call tools by itself; its answer to the result is one, too."""
    messages: list[object] = [{"role": "user", "content": "How is the weather in Bern?"}]
    body = {"messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 150}
    answer = real_worker.client.post(
        "/v1/chat/completions", json={**body, "tool_choice": choice}, timeout=120
    ).json()
    message = answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    (call,) = message["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert 1 <= arguments["days"] <= 9
        assert isinstance(arguments["city"], str)
    else:
        assert (call["function"]["name"], arguments) == ("clock", {})
    messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    done = real_worker.client.post("/v1/chat/completions", json={**body, "max_tokens": 8}, timeout=120)
    assert done.status_code == 200, done.text
    assert done.json()["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]


@pytest.mark.nightly
def test_a_response_and_its_continuation_are_forced_calls(real_worker: RunningWorker) -> None:
    """The second has the first and its result in its prompt, by the model's own template."""
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]  # type: ignore[dict-item]
    body = {"tools": tools, "tool_choice": "required", "temperature": 0, "max_output_tokens": 150}
    asked = {**body, "input": "How is the weather in Bern?"}
    first = real_worker.client.post("/v1/responses", json=asked, timeout=120).json()
    (call,) = first["output"]
    assert (first["status"], call["type"], call["status"]) == ("completed", "function_call", "completed")
    assert isinstance(json.loads(call["arguments"]), dict)
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    asked = {**body, "input": [result], "previous_response_id": first["id"]}
    second = real_worker.client.post("/v1/responses", json=asked, timeout=120).json()
    assert [item["type"] for item in second["output"]] == ["function_call"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


@pytest.mark.nightly
def test_a_message_and_its_continuation_are_forced_calls(real_worker: RunningWorker) -> None:
    """The same in the words of Anthropic's API."""
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    messages: list[object] = [{"role": "user", "content": "How is the weather in Bern?"}]
    body = {"tools": tools, "tool_choice": {"type": "any"}, "temperature": 0, "max_tokens": 150}
    for _ in range(2):
        asked = {**body, "messages": messages}
        answer = real_worker.client.post("/v1/messages", json=asked, timeout=120).json()
        (use,) = answer["content"]
        assert (answer["stop_reason"], use["name"]) == ("tool_use", "weather")
        assert 1 <= use["input"]["days"] <= 9
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": "sunny"}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
