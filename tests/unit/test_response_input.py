"""Items of a response's input, as messages for the model."""

import json
from typing import Any

import pytest

from worker_orcd.api.openai.response_input import item_of, messages_of
from worker_orcd.api.openai.response_request import ResponseRequest
from worker_orcd.jobs.errors import JobError

USER = {"role": "user", "content": "Hi."}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "one"}
REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm."}],
}
SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]}


def request(items: list[Any], **fields: Any) -> ResponseRequest:
    """A request with these items."""
    return ResponseRequest.parse(json.dumps({"input": items, **fields}).encode())


def prompt(items: list[Any]) -> list[dict[str, Any]]:
    """The messages that the model gets."""
    job = request(items).wanted("resp_1", named_by_client=False)
    given = json.loads(job.prompt)
    messages: list[dict[str, Any]] = given if isinstance(given, list) else given["messages"]
    return messages


def test_what_one_answer_had_is_one_message() -> None:
    """Reasoning, text and several calls; then what these returned, with the names of the tools."""
    second = {**CALL, "call_id": "c2", "name": "g", "arguments": ""}
    assert prompt([USER, REASONING, SAID, CALL, second, OUTPUT, {**OUTPUT, "call_id": "c2"}]) == [
        USER,
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "c1", "name": "f"},
        {"role": "tool", "content": "one", "tool_call_id": "c2", "name": "g"},
    ]


def test_two_answers_are_two_messages() -> None:
    """Also without a message of the user between them."""
    assert [message["content"] for message in prompt([USER, SAID, SAID])] == ["Hi.", "Wait.", "Wait."]
    roles = [message["role"] for message in prompt([USER, REASONING, CALL, OUTPUT, REASONING, CALL, OUTPUT])]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]


@pytest.mark.parametrize("status", ["incomplete", "in_progress"])
def test_a_call_that_is_not_complete_is_shown_to_the_model_only_with_its_output(status: str) -> None:
    """Frameworks answer a malformed call with what was wrong with it."""
    half = {**CALL, "arguments": '{"a": 1', "status": status}
    assert prompt([USER, SAID, half]) == [USER, {"role": "assistant", "content": "Wait."}]
    _, said, returned = prompt([USER, half, OUTPUT])
    assert said["tool_calls"][0]["function"]["arguments"] == half["arguments"]
    assert returned["name"] == "f"


def test_an_output_without_its_call_is_refused() -> None:
    """As in OpenAI's API."""
    for items in ([USER, OUTPUT], [OUTPUT, CALL]):
        with pytest.raises(JobError) as caught:
            messages_of([item_of(item) for item in request(items).input if not isinstance(item, str)])
        assert (caught.value.param, "'c1'" in caught.value.message) == ("input", True)


def test_tools_count_for_what_is_kept() -> None:
    """A response shows them as long as it is remembered."""
    tool = {"type": "function", "name": "f", "description": "x" * 10_000}
    plain, more = (
        request([USER], tools=tools).wanted("resp_1", named_by_client=False) for tools in ([], [tool])
    )
    assert more.without_prompt().kept_bytes - plain.without_prompt().kept_bytes >= 10_000


def test_allowed_tools_are_all_that_the_model_sees() -> None:
    """And one of them must be called if the mode says so."""
    tools = [{"type": "function", "name": name} for name in "fgh"]
    chosen = [{"type": "function", "name": name} for name in "fg"]
    for mode, forced in (("auto", []), ("required", ["f", "g"])):
        offer = request(
            [USER], tools=tools, tool_choice={"type": "allowed_tools", "mode": mode, "tools": chosen}
        ).offer
        assert [one.name for one in offer.functions] == ["f", "g"]
        assert [one.name for one in offer.forced] == forced
