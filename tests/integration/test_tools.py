"""Tools on /v1/chat/completions, with a scripted engine that generates tool calls in the formats of models."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import ended_state, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, wait_until

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Oslo"]}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
ARGUMENTS = {"city": "Bern", "days": 2}
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(ARGUMENTS)}}}\n</tool_call>'


def asked(text: str, **fields: Any) -> dict[str, Any]:
    """A request for which the scripted model generates this text."""
    messages = [{"role": "user", "content": script(text=text, token_ms=0)}]
    return {"messages": messages, "tools": [TOOL], **fields}


def whole(worker: RunningWorker, body: dict[str, Any]) -> dict[str, Any]:
    """The choice in a non-streaming response."""
    answer = worker.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def streamed(worker: RunningWorker, body: dict[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """The deltas of a stream, and why it finished."""
    answer = worker.client.post("/v1/chat/completions", json={**body, "stream": True})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    return [choice["delta"] for choice in choices], choices[-1]["finish_reason"]


def test_a_call_is_returned_in_one_response_and_in_a_stream(worker: RunningWorker) -> None:
    """The response includes the text and the reasoning before the call."""
    body = asked("<think>Hm.</think>\n\nLet me see. " + CALL)
    choice = whole(worker, body)
    message = choice["message"]
    (call,) = message["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Let me see. ")
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS

    deltas, finish = streamed(worker, body)
    assert finish == "tool_calls"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see. "
    first, *more = (delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta)
    assert (first["index"], first["type"], first["function"]) == (
        0,
        "function",
        {"name": "weather", "arguments": ""},
    )
    assert len(first["id"]) == 9
    assert all(set(delta) == {"index", "function"} and delta["index"] == 0 for delta in more)
    assert len(more) > 10
    assert json.loads("".join(delta["function"]["arguments"] for delta in more)) == ARGUMENTS


def test_an_output_whose_prompt_opens_the_reasoning_begins_with_reasoning(worker: RunningWorker) -> None:
    """Some chat templates end with the opening mark, which the model then does not write."""
    body = asked("Hm.</think>Yes.")
    body["messages"].insert(0, {"role": "user", "content": "Think.<think>\n"})
    message = whole(worker, body)["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    deltas, _ = streamed(worker, body)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    plain = {"job_id": fresh_id(), "prompt": body["messages"][1]["content"] + "<think>", "template": "none"}
    stream = worker.execute(**plain)
    stream.wait(lambda s: s.terminal is not None, what="its end")
    assert stream.text == "Hm.</think>Yes."


def test_what_only_looks_like_a_call_is_text(worker: RunningWorker) -> None:
    """The same holds for a call that max_tokens cut off, which no client may treat as a call."""
    for text, fields, finish in (
        ("<tool_call>no</tool_call>", {}, "stop"),
        (CALL, {"max_tokens": 20}, "length"),
        (CALL, {"tool_choice": "none"}, "stop"),
    ):
        choice = whole(worker, asked(text, **fields))
        assert choice["finish_reason"] == finish
        assert choice["message"]["content"] == text[: 20 if finish == "length" else None]
        assert "tool_calls" not in choice["message"]
        deltas, finish_streamed = streamed(worker, asked(text, **fields))
        assert finish_streamed == finish
        shown = "".join(delta.get("content", "") for delta in deltas)
        assert shown == choice["message"]["content"]
        assert not any("tool_calls" in delta for delta in deltas)


def test_a_call_that_max_tokens_cuts_off_is_not_a_call(worker: RunningWorker) -> None:
    """A stream has the generated part of the arguments, which is not a JSON object."""
    body = asked(CALL, max_tokens=len(CALL) - len("\n</tool_call>") - 1)
    choice = whole(worker, body)
    assert (choice["finish_reason"], "tool_calls" in choice["message"]) == ("length", False)
    assert choice["message"]["content"].startswith("<tool_call>")
    deltas, finish = streamed(worker, body)
    assert finish == "length"
    calls = [delta["tool_calls"][0]["function"] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["name"] == "weather"
    assert "".join(call["arguments"] for call in calls) == json.dumps(ARGUMENTS)[:-1]


def test_after_a_complete_call_max_tokens_is_still_the_reason_of_the_end(worker: RunningWorker) -> None:
    """Clients then know that the output is incomplete."""
    body = asked(f"{CALL} and more", max_tokens=len(CALL) + 3)
    choice = whole(worker, body)
    assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("length", 1)
    _, finish = streamed(worker, body)
    assert finish == "length"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("number", [1, 2])
def test_a_forced_call_has_arguments_that_its_schema_allows(
    worker: RunningWorker, choice: Any, number: int
) -> None:
    """Even if the model would generate something else."""
    other = {
        "type": "function",
        "function": {"name": "zero", "parameters": {"type": "object", "maxProperties": 0}},
    }
    body = asked("Nothing.", tool_choice=choice, temperature=0, max_tokens=1500)
    body["tools"] = [TOOL, other][:number]
    called = whole(worker, body)
    assert called["finish_reason"] == "tool_calls", called
    (call,) = called["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments["city"] in ("Bern", "Oslo")
        assert isinstance(arguments["days"], int)
    else:
        assert arguments == {}
    deltas, finish = streamed(worker, body)
    assert finish == "tool_calls"
    assert not any(delta.get("content") for delta in deltas)


def cancelled_at(
    worker: RunningWorker, name: str, body: dict[str, Any], mark: str, still: Callable[[], None]
) -> list[Any]:
    """The events of a stream whose job is cancelled once `mark` has come and `still` has returned."""
    lines: list[str] = []
    with worker.client.stream(
        "POST", "/v1/chat/completions", json=body, headers={"X-Job-Id": name}
    ) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if mark in line:
                still()
                worker.client.post("/cancel", json={"job_id": name})
    datas = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert datas[-1]["error"]["code"] == "CANCELLED"
    assert all(data["choices"][0]["finish_reason"] is None for data in datas[:-1])
    assert ended_state(worker, name)["state"] == "cancelled"
    return datas


def test_a_cancel_in_the_middle_of_a_call_leaves_no_call(worker: RunningWorker) -> None:
    """The stream has no finish reason, no [DONE], and no arguments that are a JSON object."""
    name = fresh_id()
    body = asked("x", stream=True, ignore_eos=True)
    call = CALL.removesuffix("\n</tool_call>")
    body["messages"][0]["content"] = script(text=f"Wait {call}", token_ms=2)

    def nearly_whole() -> None:
        wait_until(
            lambda: worker.record(name)["tokens_out"] > len(call) + 9, what="all of the call but its mark"
        )

    datas = cancelled_at(worker, name, body, '"content":" "', nearly_whole)
    choices = [data["choices"][0] for data in datas[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Wait "
    calls = [
        choice["delta"]["tool_calls"][0]["function"] for choice in choices if "tool_calls" in choice["delta"]
    ]
    assert "".join(one["arguments"] for one in calls) == json.dumps(ARGUMENTS)[:-1]


STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
WRONG = CALL.replace("Bern", "Rome")
ANSWER_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"sum": {"enum": [3, 4]}},
            "required": ["sum"],
            "additionalProperties": False,
        },
    },
}


def test_once_a_strict_function_is_called_its_arguments_are_valid(worker: RunningWorker) -> None:
    """The model decides whether to call it; text before the call, and calls of other functions, stay as they are."""
    body = asked(f"Let me see. {WRONG}", temperature=0, max_tokens=300)
    (call,) = whole(worker, body)["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] == "Rome"
    body["tools"] = [STRICT]
    message = whole(worker, body)["message"]
    assert message["content"] == "Let me see. "
    (call,) = message["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Oslo")
    deltas, finish = streamed(worker, body)
    assert finish == "tool_calls"
    parts = [delta["tool_calls"][0]["function"]["arguments"] for delta in deltas if "tool_calls" in delta]
    assert json.loads("".join(parts))["city"] in ("Bern", "Oslo")
    said = "Rome? <think>{ </think> é\n"
    assert whole(worker, {**asked(said, temperature=0), "tools": [STRICT]})["message"]["content"] == said


def test_beside_tools_a_format_holds_for_answers_and_leaves_calls_possible(worker: RunningWorker) -> None:
    """As with OpenAI's API. Nothing but calls and an answer is possible."""
    fields = {"response_format": ANSWER_FORMAT, "temperature": 0, "max_tokens": 1500}
    choice = whole(worker, asked(CALL, **fields))
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == ARGUMENTS
    assert not choice["message"]["content"]
    choice = whole(worker, asked('{"sum": 3}', **fields))
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", '{"sum": 3}')
    message = whole(worker, {**asked("It is 3.", **fields), "tools": [STRICT]})["message"]
    if message["content"]:
        assert json.loads(message["content"])["sum"] in (3, 4)
    else:
        assert json.loads(message["tool_calls"][0]["function"]["arguments"])["city"] in ("Bern", "Oslo")
    (call,) = whole(worker, {**asked(WRONG, **fields), "tools": [STRICT]})["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Oslo")


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_field(worker: RunningWorker) -> None:
    """That of a strict function, or that of the format."""
    bad = {"type": "object", "properties": {"a": {"not": {}}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": bad, "strict": True}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
    for fields, param, place in (
        ({"tools": [tool]}, "tools", "the parameters of f: "),
        ({"tools": [tool], "response_format": ANSWER_FORMAT}, "tools", "the parameters of f: "),
        ({"response_format": form}, "response_format", ""),
    ):
        answer = worker.client.post("/v1/chat/completions", json={**asked("x"), **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param)
        assert error["message"].startswith(place)
        assert error["message"].endswith("at /properties/a")


def test_a_cancel_in_the_middle_of_a_strict_call_leaves_no_call(worker: RunningWorker) -> None:
    """A constraint changes nothing about that."""
    body = {**asked("x", stream=True), "tools": [STRICT]}
    body["messages"][0]["content"] = script(text=f"Wait {CALL}", token_ms=50)
    cancelled_at(worker, fresh_id(), body, '"name":"weather"', lambda: None)
