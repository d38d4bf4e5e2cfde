"""What OpenAI's clients may ask: what is not supported is refused by its own name, never ignored or called something
else."""

import json
from typing import Any

import msgspec
import pytest

from tests.fakes import HandLoop, execute
from worker_orcd.api.openai.chat_request import ChatRequest
from worker_orcd.api.openai.completion_request import CompletionRequest
from worker_orcd.api.openai.requests import Generation
from worker_orcd.api.openai.response_request import ResponseRequest
from worker_orcd.engine.tokenizer_threads import prepare
from worker_orcd.jobs.constraint import Constraint
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.request import Ceilings, JobRequest
from worker_orcd.protocol.messages import Accepted, Rejected, Submit
from worker_orcd.sampling import SamplingParams
from worker_orcd.testing.scripted import VOCABULARY

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER = {"role": "user", "content": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def refusal(kind: type[Generation], **fields: Any) -> JobError:
    """Why this body is refused."""
    with pytest.raises(JobError) as caught:
        kind.parse(json.dumps(fields).encode())
    assert caught.value.http_status == 400
    return caught.value


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
            "messages[0]: function_call is not supported",
        ),
        ([{"role": "user", "content": [IMAGE]}], "messages[0]: a part of type 'image_url' is not supported"),
    ],
)
def test_a_message_that_holds_more_than_text_is_refused_by_what_it_holds(
    messages: list[Any], message: str
) -> None:
    """A conversation without its calls of tools would be another one."""
    error = refusal(ChatRequest, messages=messages)
    assert (error.message, error.param) == (message, "messages")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "g"}}


def chat(**fields: Any) -> JobRequest:
    """The job of a chat completion."""
    asked = ChatRequest.parse(json.dumps({"messages": [USER], **fields}).encode())
    return asked.wanted("job-1")[0]


def test_calls_and_their_results_are_given_to_the_template_with_the_tools() -> None:
    """Arguments as objects, since that is what chat templates expect."""
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
    ]
    job = chat(messages=messages, tools=[TOOL])
    called = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}
    assert json.loads(job.prompt) == {
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "content": "1", "tool_call_id": "a"},
        ],
        "tools": [TOOL],
    }
    assert job.text == "x1" + json.dumps([TOOL])
    assert job.shown_marks == "calls"
    assert job.constraint is None


def test_with_tool_choice_none_the_model_sees_no_tools() -> None:
    """The prompt is that of a request without tools."""
    job = chat(tools=[TOOL], tool_choice="none")
    assert job.prompt == chat().prompt
    assert job.shown_marks == "reasoning"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_forced_call_is_constrained_by_the_schema_of_its_arguments(choice: object) -> None:
    """Of the only tool, or the named one."""
    tools = [TOOL] if choice == "required" else [TOOL, OTHER]
    constraint = chat(tools=tools, tool_choice=choice).constraint
    assert constraint is not None
    assert json.loads(constraint.text)["type"] == "object"
    assert (constraint.kind, constraint.lenient) == ("json_schema", True)


@pytest.mark.parametrize(
    "left_open",
    [
        {},
        {"description": "anything"},
        {"properties": {"a": {"type": "integer"}}},
        {"type": ["object", "null"]},
        {"anyOf": [{"type": "object"}, {"type": "string"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": ["object", "string"]}}},
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_the_arguments_of_a_call_are_an_object_whatever_their_schema_leaves_open(
    left_open: dict[str, Any], strict: bool
) -> None:
    """Of a forced call, and of a strict function's."""
    tool = {"type": "function", "function": {"name": "h", "parameters": left_open, "strict": strict}}
    forced = chat(tools=[tool], tool_choice="required").constraint
    assert forced is not None
    assert json.loads(forced.text) == {**left_open, "type": "object"}
    free = chat(tools=[tool]).constraint
    assert (free is not None) == strict
    if free is not None:
        assert json.loads(free.text)["functions"][0]["parameters"] == {**left_open, "type": "object"}


@pytest.mark.parametrize("kind", ["string", ["string", "null"], 5, None])
def test_a_forced_call_whose_arguments_cannot_be_an_object_is_refused(kind: object) -> None:
    """By the function's name, before an engine sees it."""
    tool = {"type": "function", "function": {"name": "h", "parameters": {"type": kind}}}
    with pytest.raises(JobError, match="parameters of h") as caught:
        chat(tools=[tool], tool_choice="required")
    assert (caught.value.http_status, caught.value.param) == (400, "tools")


@pytest.mark.parametrize("kind", ["web_search", "mcp", "code_interpreter", "custom"])
def test_a_hosted_tool_is_refused_as_what_it_is(kind: str) -> None:
    """Not as a function without a name."""
    for body, more in ((ChatRequest, {"messages": [USER]}), (ResponseRequest, {"input": "x"})):
        with pytest.raises(JobError, match=f"a tool of type '{kind}' is not supported") as caught:
            body.parse(json.dumps({"tools": [{"type": kind}], **more}).encode())
        assert caught.value.param == "tools"


def test_with_several_tools_a_forced_call_says_which() -> None:
    """References within a schema are kept."""
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "integer"}},
    }
    tool = {"type": "function", "function": {"name": "h", "parameters": schema, "strict": True}}
    constraint = chat(tools=[TOOL, tool], tool_choice="required").constraint
    assert constraint is not None
    one = json.loads(constraint.text)["anyOf"][1]["properties"]
    assert one["name"] == {"const": "h"}
    assert one["arguments"]["properties"]["a"] == {"$ref": "#/anyOf/1/properties/arguments/$defs/n"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        (
            {"tools": [TOOL], "tool_choice": "required", "grammar": 'root ::= "a"'},
            "grammar",
        ),
    ],
)
def test_tools_that_cannot_be_called_are_refused(fields: dict[str, Any], param: str) -> None:
    """By the field at fault."""
    with pytest.raises(JobError) as caught:
        chat(**fields)
    assert (caught.value.http_status, (caught.value.param or "").split(".")[0]) == (400, param)


def test_a_response_format_beside_a_forced_call_changes_nothing() -> None:
    """It is about text, of which there is none. instructor sends both."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    forced = chat(tools=[TOOL], tool_choice="required")
    assert chat(tools=[TOOL], tool_choice="required", response_format=form).constraint == forced.constraint


@pytest.mark.parametrize("field", ["tools", "messages"])
def test_tools_and_arguments_that_are_nested_too_deeply_are_refused(field: str) -> None:
    """Before a chat template sees them."""
    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"a": deep}
    call = {"id": "a", "function": {"name": "f", "arguments": json.dumps(deep)}}
    tools = {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}]}
    past = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    with pytest.raises(JobError) as caught:
        chat(**(tools if field == "tools" else past))
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([USER, {"type": "web_search_call", "id": "a", "status": "completed"}], "web_search_call"),
        (
            [{"type": "function_call_output", "call_id": "a", "output": [{"type": "input_image"}]}],
            "input_image",
        ),
        ([{"type": "item_reference", "id": "a"}], "item_reference"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}], "input_image"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}], "input_file"),
    ],
)
def test_an_item_that_is_not_understood_is_refused_by_its_kind(items: list[Any], message: str) -> None:
    """It was "not a valid string", because input may be one."""
    error = refusal(ResponseRequest, input=items)
    assert message in error.message
    assert "not supported" in error.message
    assert error.param == "input"


@pytest.mark.parametrize(
    ("prompt", "jobs"), [([1, 2, 3], ["[1, 2, 3]"]), ([[1, 2], [3]], ["[1, 2]", "[3]"])], ids=str
)
def test_token_ids_become_prompts_of_token_ids(prompt: list[Any], jobs: list[str]) -> None:
    """One, or several."""
    asked = CompletionRequest.parse(json.dumps({"prompt": prompt}).encode())
    wanted = asked.wanted("job-1")
    assert [(job.prompt, job.template) for job in wanted] == [(text, "tokens") for text in jobs]


@pytest.mark.parametrize(
    "prompt", [[], [[]], [[1], []], ["a", 1], [1, "a"], [[1], "a"], [-1], [True], [1.5]], ids=str
)
def test_a_prompt_that_is_neither_texts_nor_token_ids_is_refused(prompt: list[Any]) -> None:
    """Also one without any token, and a mixture."""

    def jobs() -> object:
        return CompletionRequest.parse(json.dumps({"prompt": prompt}).encode()).wanted("job-1")

    with pytest.raises(JobError) as caught:
        jobs()
    assert (caught.value.http_status, caught.value.param) == (400, "prompt")


def test_a_token_id_beyond_the_vocabulary_is_refused() -> None:
    """The engine knows how many there are."""
    loop = HandLoop()
    asked = Submit(1, "job-1", "cor", "[104, 105]", "tokens", (), 32, SamplingParams(), 10, "0")
    assert prepare(asked, loop.model) == Accepted(1, (104, 105))
    beyond = prepare(msgspec.structs.replace(asked, prompt=f"[1, {VOCABULARY}]"), loop.model)
    assert isinstance(beyond, Rejected)
    assert (beyond.param, beyond.message) == (
        "prompt",
        f"prompt has token {VOCABULARY}, the vocabulary has {VOCABULARY} tokens",
    )
    loop.close()


@pytest.mark.parametrize(
    ("fields", "scored", "max_tokens"),
    [
        ({"prompt": "a", "echo": True}, None, 16),
        ({"prompt": "a", "logprobs": 2}, None, 16),
        ({"prompt": "a", "echo": True, "logprobs": 2}, 2, 16),
        ({"prompt": [1, 2], "echo": True}, 0, 16),
        ({"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 0}, 1, 0),
    ],
    ids=str,
)
def test_an_echo_scores_the_prompt_where_it_shows_its_tokens(
    fields: dict[str, Any], scored: int | None, max_tokens: int
) -> None:
    """A text without log probabilities is known already."""
    (job,) = CompletionRequest.parse(json.dumps(fields).encode()).wanted("job-1")
    assert (job.scored_prompt, job.max_tokens) == (scored, max_tokens)


def test_of_completions_no_tokens_at_all_only_go_with_an_echo() -> None:
    """There would be no answer. llama.vim asks this of a chat, to have its prompt computed."""
    assert refusal(CompletionRequest, prompt="a", max_tokens=0).param == "max_tokens"
    for most in ("max_tokens", "n_predict"):
        (job,) = ChatRequest.parse(json.dumps({"messages": [USER], most: 0}).encode()).wanted("job-1")
        assert job.max_tokens == 0


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": "x"}),
        (ChatRequest, {"messages": [USER]}),
        (ResponseRequest, {"input": "x"}),
    ],
)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repeat_last_n", 128),
        ("xtc_probability", 0.5),
        ("format", "json"),
    ],
)
def test_fields_of_other_servers_that_change_the_result_are_refused(
    kind: type[Generation], body: dict[str, Any], field: str, value: object
) -> None:
    """They were dropped silently."""
    assert refusal(kind, **body, **{field: value}).param == field


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_SCHEMA = Constraint("json_schema", json.dumps(SCHEMA))
ANY_OBJECT = Constraint("json_schema", '{"type": "object"}')


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"grammar": "", "guided_choice": [], "structured_outputs": {}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, AS_SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, AS_SCHEMA),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": False}}},
            Constraint("json_schema", json.dumps(SCHEMA), lenient=True),
        ),
        ({"json_schema": SCHEMA}, AS_SCHEMA),
        ({"guided_json": SCHEMA}, AS_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, AS_SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, AS_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"grammar": "root ::= [a]"}, Constraint("gbnf", "root ::= [a]")),
        ({"guided_grammar": "root ::= [a]"}, Constraint("gbnf", "root ::= [a]")),
        ({"guided_regex": "[a]+"}, Constraint("regex", "[a]+")),
        ({"guided_choice": ["a.b", "c d"]}, Constraint("regex", r"(a\.b)|(c\ d)")),
    ],
)
@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_the_form_of_the_output_may_be_asked_for_in_everybodys_words(
    kind: type[CompletionRequest | ChatRequest], fields: dict[str, Any], constraint: Constraint | None
) -> None:
    """OpenAI's, llama-server's and vLLM's; each choice is constrained."""
    asked = kind.parse(json.dumps({"messages": [USER], "prompt": "x", "n": 2, **fields}).encode())
    assert [job.constraint for job in asked.wanted("a")] == [constraint] * 2


def test_a_response_is_constrained_by_its_text_format() -> None:
    """And shows it."""
    text = {"format": {"type": "json_schema", "schema": SCHEMA, "strict": True}}
    asked = ResponseRequest.parse(json.dumps({"input": "x", "text": text}).encode())
    assert asked.wanted("a", named_by_client=False).constraint == AS_SCHEMA
    assert asked.text is not None
    assert asked.text.shown() == text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": "root ::= [a]", "guided_json": {}}, "guided_json"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"grammar": "x" * 200_000}, "grammar"),
        ({"json_schema": {"enum": ["x" * 200_000]}}, "json_schema"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
    ],
)
def test_a_form_that_is_out_of_bounds_is_refused_by_its_field(fields: dict[str, Any], param: str) -> None:
    """Before an engine sees it."""
    with pytest.raises(JobError) as caught:
        ChatRequest.parse(json.dumps({"messages": [USER], **fields}).encode()).wanted("a")
    assert (caught.value.http_status, caught.value.param) == (400, param)


def test_a_schema_may_not_be_nested_without_end() -> None:
    """Its depth is counted before it is compiled."""
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"items": schema}
    assert "nested deeper" in refused_job(json_schema=schema).message


def test_a_job_has_one_constraint() -> None:
    """A JSON Schema or a grammar."""
    assert refused_job(json_schema={}, grammar="root ::= [a]").param == "grammar"


def refused_job(**fields: Any) -> JobError:
    """Why a job is refused."""
    with pytest.raises(JobError) as caught:
        execute(**fields).within(Ceilings())
    return caught.value


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"messages": [1, {"type": []}]}']
)
@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest, ResponseRequest])
def test_what_is_no_request_at_all_is_refused_for_that(kind: type[Generation], body: bytes) -> None:
    """The search for what is not supported stumbles over nothing."""
    with pytest.raises(JobError):
        kind.parse(body)


@pytest.mark.parametrize("most", [-1, -2])
@pytest.mark.parametrize("name", ["max_tokens", "n_predict"])
def test_a_negative_limit_of_tokens_is_none(name: str, most: int) -> None:
    """As in llama-server and Ollama, whose clients send it; a completion without a limit has OpenAI's."""
    bodies: list[tuple[type[ChatRequest | CompletionRequest], dict[str, Any]]] = [
        (ChatRequest, {"messages": [USER]}),
        (CompletionRequest, {"prompt": "x"}),
    ]
    for kind, body in bodies:
        (job,) = kind.parse(json.dumps({**body, name: most}).encode()).wanted("job-1")
        assert job.max_tokens is None
        assert refusal(kind, **body, **{name: -3}).param == name


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_of_tokens_is_called_as_the_request_calls_it(name: str) -> None:
    """Both mean the same."""
    asked = ChatRequest.parse(json.dumps({"messages": [USER], name: 5}).encode())
    assert asked.names["max_tokens"] == name


def test_the_items_of_an_ended_response_count_for_what_is_kept_and_only_if_it_is_stored() -> None:
    """What bounds the text of ended jobs bounds conversations, too: each response's whole one counts."""
    long = "x" * 100_000
    for store in (True, False):
        asked = ResponseRequest.parse(json.dumps({"input": long, "store": store}).encode())
        first = asked.wanted("resp_1", named_by_client=False)
        second = asked.wanted("resp_2", first.items, named_by_client=False)
        kept = [one.without_prompt() for one in (first, second)]
        assert all(long not in json.dumps(one.asked.model_dump()) for one in kept)
        if store:
            assert 100_000 <= kept[0].kept_bytes < 110_000
            assert 200_000 <= kept[1].kept_bytes < 220_000
        else:
            assert all(one.items == () and one.kept_bytes < 100 for one in kept)


@pytest.mark.parametrize(
    ("body", "name", "value", "neutral"),
    [
        (ChatRequest, "include_reasoning", False, True),
        (ChatRequest, "n_cmpl", 2, 1),
        (ChatRequest, "return_token_ids", True, False),
        (ChatRequest, "return_tokens_as_token_ids", True, False),
        (ChatRequest, "adaptive_target", 0.4, -1),
        (ChatRequest, "parse_tool_calls", False, True),
        (ChatRequest, "thinking_token_budget", 0, None),
        (ChatRequest, "guided_whitespace_pattern", " ", None),
        (ResponseRequest, "stop", ["."], []),
        (ResponseRequest, "max_tokens", 2, None),
        (ResponseRequest, "max_completion_tokens", 2, None),
        (ResponseRequest, "n", 2, 1),
    ],
)
def test_what_would_change_the_output_is_refused_unless_it_is_neutral(
    body: type[ChatRequest | ResponseRequest], name: str, value: object, neutral: object
) -> None:
    """Never ignored."""
    least = {"messages": [USER]} if body is ChatRequest else {"input": "x"}
    body.parse(json.dumps({**least, name: neutral}).encode())
    with pytest.raises(JobError, match=f"{name} is not supported") as caught:
        body.parse(json.dumps({**least, name: value}).encode())
    assert caught.value.param == name


@pytest.mark.parametrize(
    "more",
    [{"disable_any_whitespace": True}, {"whitespace_pattern": " "}, {"disable_additional_properties": True}],
)
def test_a_structured_output_has_no_option_that_is_ignored(more: dict[str, Any]) -> None:
    """Those of vLLM that do nothing may be given."""
    asked = {"messages": [USER], "structured_outputs": {"json": {}, "disable_any_whitespace": False}}
    ChatRequest.parse(json.dumps(asked).encode())
    with pytest.raises(JobError) as caught:
        ChatRequest.parse(json.dumps({**asked, "structured_outputs": {"json": {}, **more}}).encode())
    assert caught.value.param == "structured_outputs"
