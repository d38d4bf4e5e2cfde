"""Tools on /v1/responses, with a scripted engine that generates tool calls in the formats of models."""

import json
from typing import Any

import pytest

from tests.helpers import ended_state, fresh_id, script
from tests.integration.test_tools import ANSWER_FORMAT, ARGUMENTS, CALL, TOOL, WRONG
from worker_orcd.testing.harness import RunningWorker, wait_until

WEATHER = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
OPEN_CALL = CALL.removesuffix("\n</tool_call>")


def asked(text: str, **fields: Any) -> dict[str, Any]:
    """A request for which the scripted model generates this text."""
    return {"input": script(text=text, token_ms=0), "tools": [WEATHER], **fields}


def respond(worker: RunningWorker, body: dict[str, Any]) -> dict[str, Any]:
    """A response."""
    answer = worker.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    response: dict[str, Any] = answer.json()
    return response


def events_in(text: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def streamed(worker: RunningWorker, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a response. Checks that reading them again, after any of them, gives the same events."""
    events = events_in(worker.client.post("/v1/responses", json={**body, "stream": True}).text)
    first = events[0]["sequence_number"]
    assert [event["sequence_number"] - first for event in events] == list(range(len(events)))
    path = f"/v1/responses/{events[0]['response']['id']}"
    assert events_in(worker.client.get(f"{path}?stream=true").text) == events
    half = f"{path}?stream=true&starting_after={first + len(events) // 2}"
    assert events_in(worker.client.get(half).text) == events[len(events) // 2 + 1 :]
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, without their prefix. Consecutive deltas count once."""
    found = [event["type"].removeprefix("response.") for event in events]
    return [
        kind
        for place, kind in enumerate(found)
        if not place or found[place - 1] != kind or "delta" not in kind
    ]


def deltas(events: list[dict[str, Any]], name: str) -> str:
    """The joined deltas of one kind."""
    return "".join(event["delta"] for event in events if event["type"] == f"response.{name}.delta")


def items_of(worker: RunningWorker, response_id: str) -> list[dict[str, Any]]:
    """The input items of a response, the first item first."""
    page = worker.client.get(f"/v1/responses/{response_id}/input_items?order=asc").json()
    data: list[dict[str, Any]] = page["data"]
    return data


def test_reasoning_text_and_calls_are_separate_items(worker: RunningWorker) -> None:
    """In a complete response and in a stream, each item has an id."""
    body = asked(f"<think>Hm.</think>\n\nLet me see. {CALL}")
    response = respond(worker, body)
    reasoning, message, call = response["output"]
    assert (response["status"], response["tools"][0]["name"]) == ("completed", "weather")
    assert (reasoning["type"], reasoning["content"]) == (
        "reasoning",
        [{"type": "reasoning_text", "text": "Hm."}],
    )
    assert (message["type"], message["content"][0]["text"]) == ("message", "Let me see. ")
    assert (call["type"], call["status"], call["name"]) == ("function_call", "completed", "weather")
    assert json.loads(call["arguments"]) == ARGUMENTS
    assert len({item["id"] for item in response["output"]} | {call["call_id"]}) == 4
    assert worker.client.get(f"/v1/responses/{response['id']}").json() == response

    events = streamed(worker, body)
    part = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
    assert kinds(events) == [
        *("created", "in_progress"),
        *(*part[0], "reasoning_text.delta", "reasoning_text.done", *part[1]),
        *(*part[0], "output_text.delta", "output_text.done", *part[1]),
        *(
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ),
        "completed",
    ]
    assert deltas(events, "reasoning_text") == "Hm."
    assert deltas(events, "output_text") == "Let me see. "
    assert json.loads(deltas(events, "function_call_arguments")) == ARGUMENTS
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert [item["status"] for item in done] == ["completed"] * 3
    places = [event["output_index"] for event in events if "output_index" in event]
    assert places == sorted(places)


def test_tool_results_are_part_of_the_next_prompt(worker: RunningWorker) -> None:
    """The model gets the same prompt for a whole conversation and for `previous_response_id`."""
    body = asked(f"<think>Hm.</think>Wait. {CALL}")
    first = respond(worker, body)
    *_, call = first["output"]
    said = {"type": "function_call_output", "call_id": call["call_id"]}
    answer = script(text="Sunny.", token_ms=0)
    parts = [{"type": "input_text", "text": answer}]
    kept = respond(
        worker,
        {"input": [{**said, "output": answer}], "tools": [WEATHER], "previous_response_id": first["id"]},
    )
    sent = respond(
        worker,
        {
            "input": [
                {"role": "user", "content": body["input"]},
                *first["output"],
                {**said, "output": parts},
            ],
            "tools": [WEATHER],
        },
    )
    for response in (kept, sent):
        assert response["output"][0]["content"][0]["text"] == "Sunny."
        items = items_of(worker, response["id"])
        assert [item["type"] for item in items] == [
            *("message", "reasoning", "message", "function_call", "function_call_output")
        ]
        assert items[3] | {"id": ""} == call | {"id": ""}
    assert kept["usage"]["input_tokens"] == sent["usage"]["input_tokens"]
    orphan = {
        "input": [{**said, "call_id": "unknown", "output": answer}],
        "previous_response_id": first["id"],
    }
    refused = worker.client.post("/v1/responses", json=orphan)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


def test_a_call_that_max_tokens_cuts_off_is_incomplete(worker: RunningWorker) -> None:
    """The arguments are not JSON, and no event reports the call as done."""
    events = streamed(worker, asked(CALL, max_output_tokens=len(OPEN_CALL) - 1))
    assert kinds(events)[-2:] == ["function_call_arguments.delta", "incomplete"]
    assert not any(kind.endswith(".done") for kind in kinds(events))
    (call,) = events[-1]["response"]["output"]
    assert (call["type"], call["status"]) == ("function_call", "incomplete")
    assert call["arguments"] == json.dumps(ARGUMENTS)[:-1] == deltas(events, "function_call_arguments")


def test_what_only_looks_like_a_call_is_text(worker: RunningWorker) -> None:
    """Without tools, everything except reasoning is text."""
    for text, fields in (
        ("<tool_call>no</tool_call>", {}),
        (CALL, {"tool_choice": "none"}),
        (CALL, {"tools": []}),
    ):
        (message,) = respond(worker, asked(text, **fields))["output"]
        assert message["content"][0]["text"] == text
    reasoning, message = respond(worker, asked("<think>Hm.</think>Yes.", tools=None))["output"]
    assert (reasoning["type"], message["content"][0]["text"]) == ("reasoning", "Yes.")


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    ],
    ids=lambda choice: choice if isinstance(choice, str) else choice["type"],
)
def test_a_forced_call_has_arguments_that_its_schema_allows(worker: RunningWorker, choice: Any) -> None:
    """Even if the model would generate something else."""
    other = {**WEATHER, "name": "zero", "parameters": {"type": "object", "maxProperties": 0}}
    body = asked("Nothing.", tool_choice=choice, temperature=0, max_output_tokens=1500)
    body["tools"] = [WEATHER, other]
    response = respond(worker, body)
    (call,) = response["output"]
    assert (response["status"], call["type"], call["status"]) == ("completed", "function_call", "completed")
    assert response["tool_choice"] == choice
    arguments = json.loads(call["arguments"])
    if call["name"] == "weather":
        assert arguments["city"] in ("Bern", "Oslo")
    else:
        assert (choice, arguments) == ("required", {})


def test_only_one_call_is_returned_if_parallel_calls_are_off(worker: RunningWorker) -> None:
    """Each call has its own id."""
    calls = respond(worker, asked(CALL + CALL))["output"]
    assert [call["type"] for call in calls] == ["function_call"] * 2
    assert calls[0]["call_id"] != calls[1]["call_id"]
    response = respond(worker, asked(CALL + CALL, parallel_tool_calls=False))
    assert (len(response["output"]), response["parallel_tool_calls"]) == (1, False)


@pytest.mark.parametrize("background", [False, True])
def test_a_cancel_in_the_middle_of_a_call_leaves_no_call(worker: RunningWorker, background: bool) -> None:
    """If only the closing mark of a call is missing, the item is not done and its arguments are not JSON. A
    continuation does not contain the call."""
    name = fresh_id("resp")
    body = asked("x", stream=True, background=background, ignore_eos=True)
    body["input"] = script(text=OPEN_CALL, token_ms=2)
    lines: list[str] = []
    shown: dict[str, Any] = {}
    with worker.client.stream("POST", "/v1/responses", json=body, headers={"X-Job-Id": name}) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if line == "event: response.in_progress":
                wait_until(
                    lambda: worker.record(name)["tokens_out"] > len(OPEN_CALL), what="all but its mark"
                )
                shown = worker.client.post(f"/v1/responses/{name}/cancel").json()
    events = events_in("\n".join(lines))
    assert kinds(events)[-3:] == ["output_item.added", "function_call_arguments.delta", "error"]
    assert events[-1]["code"] == "CANCELLED"
    assert not any(kind.endswith(".done") for kind in kinds(events))
    cut = json.dumps(ARGUMENTS)[:-1]
    assert deltas(events, "function_call_arguments") == cut
    (call,) = shown["output"]
    assert (shown["status"], call["status"], call["arguments"]) == ("cancelled", "incomplete", cut)
    record: Any = ended_state(worker, name)
    assert (record["state"], record["receipt"]["reason"]) == ("cancelled", "client")
    assert record["receipt"]["kv_cells_after"] == 0

    answered = script(text="ok", token_ms=0)
    plain = len(body["input"]) + len(answered) + 2  # Line breaks around an empty answer.
    again = respond(worker, {"input": answered, "previous_response_id": name})
    assert again["usage"]["input_tokens"] == plain


@pytest.mark.parametrize(
    "text", ["So <tool_", f"So {OPEN_CALL}", f"{CALL} So", "<think>Hm", f"{CALL}\n<tool_call>\n{{"]
)
def test_a_cancelled_stream_is_the_same_when_it_is_read_again(worker: RunningWorker, text: str) -> None:
    """For any part of a call, and for text that was held back. Only complete calls are done."""
    name = fresh_id("resp")
    body = asked("x", stream=True, background=True, ignore_eos=True)
    body["input"] = script(text=text, token_ms=1)
    with worker.client.stream("POST", "/v1/responses", json=body, headers={"X-Job-Id": name}) as answer:
        lines = answer.iter_lines()
        seen = [next(lines)]
        wait_until(lambda: worker.record(name)["tokens_out"] > len(text), what="all of it")
        worker.cancel(name)
        seen += lines
    events = events_in("\n".join(seen))
    assert events_in(worker.client.get(f"/v1/responses/{name}?stream=true").text) == events
    output = worker.client.get(f"/v1/responses/{name}").json()["output"]
    whole = [item for item in output if item["type"] == "function_call" and item["status"] == "completed"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert whole == [item for item in done if item["type"] == "function_call"]
    assert len(whole) == text.count("</tool_call>")
    shown = "".join(part["text"] for item in output if "content" in item for part in item["content"])
    assert shown == deltas(events, "reasoning_text") + deltas(events, "output_text")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        (
            {"tool_choice": "required", "text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format",
        ),
        ({"tool_choice": "required", "tools": [{**WEATHER, "parameters": {"type": "nonsense"}}]}, "tools"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input"),
    ],
    ids=str,
)
def test_unsupported_fields_are_refused_by_name(
    worker: RunningWorker, fields: dict[str, Any], param: str
) -> None:
    """The same as on chat completions."""
    answer = worker.client.post("/v1/responses", json=asked("x") | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


FORMAT = {"format": {"type": "json_schema", **ANSWER_FORMAT["json_schema"]}}  # type: ignore[dict-item]
STRICT = {**WEATHER, "strict": True}


def test_beside_tools_a_text_format_holds_for_messages_and_leaves_calls_possible(
    worker: RunningWorker,
) -> None:
    """The output is either calls or one message of that form, whole and streamed."""
    fields: dict[str, Any] = {"temperature": 0, "max_output_tokens": 1500}

    def formatted(said: str, **more: Any) -> dict[str, Any]:
        return asked(said, **fields) | {"text": FORMAT, **more}

    (call,) = respond(worker, formatted(CALL))["output"]
    assert (call["type"], call["status"]) == ("function_call", "completed")
    assert json.loads(call["arguments"]) == ARGUMENTS
    events = streamed(worker, formatted(CALL))
    assert json.loads(deltas(events, "function_call_arguments")) == ARGUMENTS
    assert not deltas(events, "output_text")

    for said in ('{"sum": 3}', "It is 3."):
        response = respond(worker, formatted(said, tools=[STRICT]))
        assert response["status"] == "completed"
        (item,) = response["output"]
        if said[0] == "{":
            assert item["content"][0]["text"] == said
        elif item["type"] == "message":
            assert json.loads(item["content"][0]["text"])["sum"] in (3, 4)
        else:
            assert json.loads(item["arguments"])["city"] in ("Bern", "Oslo")
    events = streamed(worker, formatted('{"sum": 4}'))
    assert (deltas(events, "output_text"), deltas(events, "function_call_arguments")) == ('{"sum": 4}', "")

    (call,) = respond(worker, formatted(WRONG, tools=[STRICT]))["output"]
    assert json.loads(call["arguments"])["city"] in ("Bern", "Oslo")
    (item,) = respond(worker, formatted("It is 3.", tool_choice="none"))["output"]
    assert json.loads(item["content"][0]["text"])["sum"] in (3, 4)
    (call,) = respond(worker, formatted("It is 3.", tool_choice="required"))["output"]
    assert json.loads(call["arguments"])["city"] in ("Bern", "Oslo")


def test_beside_tools_a_schema_that_cannot_be_enforced_is_refused_by_its_field(worker: RunningWorker) -> None:
    """That of a strict function, or that of the format."""
    bad = {"type": "object", "properties": {"a": {"not": {}}}}
    tool = {"type": "function", "name": "f", "parameters": bad, "strict": True}
    form = {"format": {"type": "json_schema", "name": "x", "schema": bad, "strict": True}}
    for fields, param in (
        ({"tools": [tool]}, "tools"),
        ({"tools": [tool], "text": FORMAT}, "tools"),
        ({"text": form}, "text.format"),
        ({"tools": [STRICT], "text": form}, "text.format"),
        ({"tools": [tool], "text": FORMAT, "tool_choice": "required"}, "tools"),
    ):
        answer = worker.client.post("/v1/responses", json={**asked("x"), **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), (fields, error)
        assert error["message"].endswith("at /properties/a"), error


def test_a_cancel_in_the_middle_of_a_message_of_a_text_format_leaves_it_incomplete(
    worker: RunningWorker,
) -> None:
    """Beside tools as alone."""
    name = fresh_id("half")
    body = asked("x", background=True)
    body |= {"text": FORMAT, "input": script(text='{"sum": 3}', token_ms=50)}
    worker.client.post("/v1/responses", json=body, headers={"X-Job-Id": name})
    wait_until(lambda: (worker.record(name).get("tokens_out") or 0) >= 4, what="half of a message")
    worker.cancel(name)
    assert ended_state(worker, name)["state"] == "cancelled"
    response = worker.client.get(f"/v1/responses/{name}").json()
    (item,) = response["output"]
    assert (response["status"], item["type"], item["status"]) == ("cancelled", "message", "incomplete")
