"""Calls of tools in each format, and what only looks like one."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker_orcd.engine.model import Model
from worker_orcd.engine.sequence import Sequence
from worker_orcd.tool_calls.call import Arguments, Call, CallBegun, CallEnded, Part, Reasoning, Text
from worker_orcd.tool_calls.formats import SHOWN_MARKS, Marks, formats_of, recognized
from worker_orcd.tool_calls.generic_prompt import without_tools
from worker_orcd.tool_calls.harmony import HarmonyParser
from worker_orcd.tool_calls.parser import OutputParser
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.worker import Worker

ARGUMENTS = {"city": "Bern", "days": 2}
JSON = json.dumps(ARGUMENTS)
CALL = Call("weather", JSON)
HERMES = f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>'


def parsed(output: str, *, parallel: bool = True) -> list[Part]:
    """What an output consists of."""
    parser = OutputParser(frozenset({"weather"}), parallel=parallel)
    return [*parser.feed(output), *parser.finish()]


@pytest.mark.parametrize(
    "output",
    [
        HERMES,
        HERMES.removesuffix("</tool_call>"),
        f'{{"name": "weather", "parameters": {JSON}}}',
        f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {JSON}}}',
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON}}}]',
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {json.dumps(JSON)}, "id": "abc"}}]',
        f"[TOOL_CALLS]weather[ARGS]{JSON}",
        f"[TOOL_CALLS]weather{JSON}",
        f'<|tool_call|>[{{"name": "weather", "arguments": {JSON}}}]',
        '<|tool_call_start|>[weather(city="Bern", days=2)]<|tool_call_end|>',
        "```tool_code\nweather(city='Bern', days=2)\n```",
        "```tool_code\nprint(weather(city='Bern', days=2))\n```",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        f"```json\n{JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ],
)
def test_a_call_is_found_in_each_format(output: str) -> None:
    """As the models of each family write it."""
    assert parsed(output) == [CALL]


@pytest.mark.parametrize(
    "output",
    [
        f"{HERMES}\n{HERMES}",
        f'{{"name": "weather", "parameters": {JSON}}}; {{"name": "weather", "parameters": {JSON}}}',
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON}}}, {{"name": "weather", "arguments": {JSON}}}]',
        f"[TOOL_CALLS]weather[ARGS]{JSON}[TOOL_CALLS]weather[ARGS]{JSON}",
        "<|tool_call_start|>[weather(city='Bern', days=2), weather(city='Bern', days=2)]<|tool_call_end|>",
    ],
)
def test_several_calls_are_found_or_only_the_first_is_wanted(output: str) -> None:
    """As `parallel_tool_calls` says."""
    assert parsed(output) == [CALL, CALL]
    assert parsed(output, parallel=False) == [CALL]


@pytest.mark.parametrize(
    "output",
    [
        "<tool_call>weather</tool_call>",
        '<tool_call>{"name": "weather", "arguments": {"city": </tool_call>',
        '<tool_call>{"name": "weather", "arguments": 3}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>',
        '<tool_call>{"name": "weather", "argu',
        "[TOOL_CALLS]weather",
        "<|tool_call_start|>[weather('Bern')]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city=open('x'))]<|tool_call_end|>",
        "```tool_code\nimport os\n```",
        '{"name": "other", "parameters": {}}',
        '{"temperature": 3}',
        "A tag like <tool_cal",
        "if a < b",
        "   ",
    ],
)
def test_what_only_looks_like_a_call_is_text(output: str) -> None:
    """Nothing of it is lost."""
    parts = parsed(output)
    assert all(isinstance(part, Text) for part in parts)
    assert "".join(part.text for part in parts if isinstance(part, Text)) == output


def test_text_before_a_call_comes_at_once() -> None:
    """It is not held until the call is whole."""
    parser = OutputParser(frozenset({"weather"}))
    assert parser.feed("Let me see. <tool") == [Text("Let me see. ")]
    assert parser.feed('_call>{"name": "weather", "arguments": ' + JSON) == []
    assert parser.feed("}</tool_call>") == [CALL]


def test_reasoning_is_apart_and_comes_at_once() -> None:
    """White space around it is left out; so are calls that the model only thinks of."""
    parser = OutputParser(frozenset({"weather"}))
    assert parser.feed("\n<think>Maybe <tool_call>") == [Reasoning("Maybe <tool_call>")]
    assert parser.feed("</think>\n\n" + HERMES) == [CALL]
    mistral = OutputParser()
    assert mistral.feed("[THINK]a[/THINK]Yes") == [Reasoning("a"), Text("Yes")]
    plain = OutputParser()
    assert plain.feed("<think>a</think>\n\nYes <think>") == [Reasoning("a"), Text("Yes <think>")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": ', "}\n</tool_call>"),
        ('{"name": "weather", "parameters": ', "}"),
        ('<|python_tag|>{"type": "function", "name": "weather", "parameters": ', "}"),
        ('[TOOL_CALLS][{"name": "weather", "arguments": ', ', "id": "abc"}]'),
        ("[TOOL_CALLS]weather[ARGS]", ""),
        ("[TOOL_CALLS]weather[CALL_ID]a1[ARGS]", ""),
        ('<|tool_call|>[{"name": "weather", "arguments": ', "}]"),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n",
            "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>",
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
    ],
)
def test_a_stream_has_the_arguments_while_they_are_written(before: str, after: str) -> None:
    """All but the last brace, which comes when the call is complete."""
    parser = OutputParser(frozenset({"weather"}), streams=True)
    assert [part for character in before for part in parser.feed(character)] == []
    written = [part for character in JSON[:-1] for part in parser.feed(character)]
    assert written == [CallBegun("weather"), *map(Arguments, JSON[:-1])]
    assert parser.calls == 0
    rest = [*parser.feed("}" + after), *parser.finish()]
    assert rest == [Arguments("}"), CallEnded()]
    assert parser.calls == 1


@pytest.mark.parametrize("breaks_off", [True, False])
@pytest.mark.parametrize("end", ["", "}", "}</tool_call>", '}, "name": "other"}</tool_call>'])
def test_a_call_that_is_malformed_or_broken_off_never_ends_in_a_stream(end: str, breaks_off: bool) -> None:
    """What was given out of it is no JSON object."""
    parser = OutputParser(frozenset({"weather"}), streams=True)
    parts = parser.feed('<tool_call>{"name": "weather", "arguments": ' + JSON[:-1] + end)
    parts += parser.abandon() if breaks_off else parser.finish()
    assert CallEnded() not in parts
    assert "".join(part.text for part in parts if isinstance(part, Arguments)) == JSON[:-1]


@pytest.mark.parametrize("streams", [True, False])
def test_an_output_that_is_broken_off_before_the_closing_mark_has_no_call(streams: bool) -> None:
    """At the output's natural end the mark may be missing."""
    parser = OutputParser(frozenset({"weather"}), streams=streams)
    parts = parser.feed(HERMES.removesuffix("</tool_call>")) + parser.abandon()
    assert not [part for part in parts if isinstance(part, Call | CallEnded)]


def test_a_closing_mark_in_a_string_of_the_arguments_closes_nothing() -> None:
    """It is an argument."""
    output = '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>"}}</tool_call>'
    assert parsed(output) == [Call("weather", '{"city": "</tool_call>"}')]


@pytest.mark.parametrize(
    ("marks", "shown"),
    [("none", (b"", b"")), ("reasoning", (b"", b"<think>")), ("calls", (b"[ARGS]", b"<think>"))],
)
def test_control_tokens_are_text_only_where_they_are_looked_for(
    marks: Marks, shown: tuple[bytes, bytes]
) -> None:
    """Those of calls with tools, those of reasoning in each conversation."""
    names = [b"[ARGS]", b"<think>", b"<unused>"]
    model = cast("Model", SimpleNamespace(piece=lambda _: b"", name=names.__getitem__))
    sequence = Sequence.__new__(Sequence)
    sequence._marks = SHOWN_MARKS[marks]
    assert [sequence._piece(token, model) for token in range(3)] == [*shown, b""]


def test_the_operator_may_say_how_the_model_writes_calls() -> None:
    """Otherwise the model's chat template does."""
    worker = SimpleNamespace(policy=Policy(tool_format="lfm2"), _tool_formats=("gemma",))
    assert Worker.tool_formats.__get__(worker) == ("lfm2",)
    worker.policy = Policy()
    assert Worker.tool_formats.__get__(worker) == ("gemma",)


def test_line_breaks_in_arguments_are_escaped() -> None:
    """Models write them into strings, where JSON forbids them."""
    output = '<tool_call>{"name": "weather", "arguments": {\n"city": "a\nb\\"\tc"}}</tool_call>'
    parser = OutputParser(frozenset({"weather"}), streams=True)
    parts = [part for character in output for part in parser.feed(character)]
    arguments = "".join(part.text for part in parts if isinstance(part, Arguments))
    assert json.loads(arguments) == {"city": 'a\nb"\tc'}
    (call,) = (part for part in parsed(output) if isinstance(part, Call))
    assert json.loads(call.arguments) == json.loads(arguments)


def test_text_may_follow_a_call_without_a_closing_mark() -> None:
    """The call ends with its JSON value."""
    call = f'{{"name": "weather", "parameters": {JSON}}}'
    assert parsed(f"{call}; {call}\nDone.") == [CALL, CALL, Text("\nDone.")]
    assert parsed(f"<|python_tag|>{call} Done.") == [CALL, Text(" Done.")]


def test_an_answer_in_json_that_is_no_call_comes_at_once() -> None:
    """It is not held until its end."""
    parser = OutputParser(frozenset({"weather"}))
    assert parser.feed('{"tem') == [Text('{"tem')]
    other = OutputParser(frozenset({"weather"}))
    assert other.feed('{"name": "other", "parameters": {') == [Text('{"name": "other", "parameters": {')]


def test_formats_are_recognized_by_the_template() -> None:
    """Those that it does not name are text; Hermes' is always looked for."""
    assert recognized("… <|python_tag|> …") == ("llama3",)
    assert recognized("… no tools …") == ()
    assert recognized("<|start|>assistant<|channel|>final<|message|>") == ("harmony",)
    mistral = f"[TOOL_CALLS]weather[ARGS]{JSON}"
    parser = OutputParser(frozenset({"weather"}), formats=formats_of(["llama3"]))
    assert [*parser.feed(mistral), *parser.finish()] == [Text(mistral)]
    hermes = OutputParser(frozenset({"weather"}), formats=formats_of(["llama3"]))
    assert [*hermes.feed(HERMES), *hermes.finish()] == [CALL]
    assert len(formats_of([])) > 5


THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
HARMONY = f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{JSON}"


def in_harmony(output: str, *, streams: bool = False, parallel: bool = True) -> list[Part]:
    """What an output of gpt-oss consists of, read character by character."""
    parser = HarmonyParser(frozenset({"weather"}), streams=streams, parallel=parallel)
    parts = [part for character in output for part in parser.feed(character)] + parser.finish()
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Text | Reasoning | Arguments) and type(last) is type(part):
            joined[-1] = type(part)(last.text + part.text)
        else:
            joined.append(part)
    return joined


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        (f"{THOUGHT}<|channel|>final<|message|>Yes, a < b.", [Reasoning("Hm."), Text("Yes, a < b.")]),
        (THOUGHT + HARMONY, [Reasoning("Hm."), CALL]),
        (f" to=functions.weather<|channel|>commentary json<|message|>{JSON}<|call|>", [CALL]),
        (f"{HARMONY}<|end|><|start|>assistant{HARMONY}", [CALL, CALL]),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + HARMONY,
            [Text("I look."), CALL],
        ),
        (f"{HARMONY[:-1]}", [Text(JSON[:-1])]),
        ("<|channel|>analysis to=browser.find code<|message|>x", [Reasoning("x")]),
        ('{"a": 1}', [Text('{"a": 1}')]),
        ("<b>", [Text("<b>")]),
        ("to", [Text("to")]),
        ("<|channel|>fin", []),
    ],
)
def test_the_messages_of_gpt_oss_are_distinguished(output: str, parts: list[Part]) -> None:
    """Reasoning, text and calls; a constrained output has no header."""
    assert in_harmony(output) == parts


def test_a_stream_of_gpt_oss_has_the_arguments_while_they_are_written() -> None:
    """As all streams."""
    called: list[Part] = [CallBegun("weather"), Arguments(JSON), CallEnded()]
    assert in_harmony(f"{HARMONY}<|end|><|start|>assistant{HARMONY}", streams=True) == called * 2
    assert in_harmony(HARMONY + "<|end|><|start|>assistant" + HARMONY, streams=True, parallel=False) == called
    parser = HarmonyParser(frozenset({"weather"}), streams=True)
    parts = parser.feed(HARMONY) + parser.abandon()
    assert parts == [CallBegun("weather"), Arguments(JSON[:-1])]
    assert parser.calls == 0


def test_without_tools_there_are_no_calls() -> None:
    """The text may be about them."""
    parser = OutputParser()
    assert [*parser.feed(HERMES), *parser.finish()] == [Text(HERMES)]


def test_only_the_arguments_are_written_of_a_forced_call() -> None:
    """Its name is known."""
    parser = OutputParser(frozenset({"weather"}), only="weather")
    assert [*parser.feed(JSON), *parser.finish()] == [CALL]
    cut = OutputParser(frozenset({"weather"}), only="weather")
    assert [*cut.feed(JSON[:-1]), *cut.finish()] == [Text(JSON[:-1])]


def test_a_model_without_tools_in_its_template_gets_them_in_the_system_message() -> None:
    """In the format that the parser finds."""
    call = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    conversation: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    system, user, assistant, result = without_tools(conversation, [tool])
    assert system["content"].startswith("Be brief.\n\n")
    assert json.dumps(tool) in system["content"]
    assert user == conversation[1]
    assert parsed(assistant["content"]) == [CALL]
    assert result == {"role": "user", "content": "<tool_response>\nsunny\n</tool_response>"}
    *_, both = without_tools([*conversation, conversation[-1], {"role": "user", "content": "And?"}], [tool])
    assert both["content"].count("sunny") == 2
    assert both["content"].endswith("\nAnd?")
    assert without_tools(conversation[1:2], [tool])[0]["role"] == "system"
    assert without_tools(conversation[1:2], []) == conversation[1:2]
