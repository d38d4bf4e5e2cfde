"""Outputs that may contain tool calls: text is free, calls are as the functions' schemas allow."""

import json
import random
from collections.abc import Sequence

import jsonschema_rs
import pytest

from tests.grammars import TOY, tokens_of, write
from worker_orcd.api.openai.tools import MAX_TOOLS
from worker_orcd.engine.grammars.compiler import Compiler, GrammarFault, Matcher
from worker_orcd.engine.grammars.messages import Vocabulary
from worker_orcd.protocol.messages import Constraint
from worker_orcd.tool_calls.call import Call, Text
from worker_orcd.tool_calls.formats import CALL_MARKS, ToolFormat, formats_of
from worker_orcd.tool_calls.harmony import HarmonyParser
from worker_orcd.tool_calls.offer import Offered, OfferedFunction
from worker_orcd.tool_calls.parser import OutputParser, Parser

ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Oslo"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
ANSWER = {
    "type": "object",
    "properties": {"sum": {"$ref": "#/$defs/digit"}},
    "required": ["sum"],
    "additionalProperties": False,
    "$defs": {"digit": {"enum": [1, 2]}},
}
OFFERED = Offered((OfferedFunction("weather", ARGUMENTS, strict=True), OfferedFunction("a-b.c")))
MARKS = sorted(mark for mark in CALL_MARKS if "`" not in mark)
MARKED = Vocabulary(
    [*TOY.tokens, *(b"\xff" + mark.encode() for mark in MARKS), b"\xff<other>", b'>\n{"name'],
    TOY.ends,
)
"""The marks are special tokens; one token crosses the border of a mark that is text."""
IDS = {text: id_ for id_, text in reversed(list(enumerate(MARKED.tokens)))}
PLAIN = Vocabulary(MARKED.tokens[: len(TOY.tokens)] + MARKED.tokens[-1:], TOY.ends)
"""The marks are text."""
MARKED_COMPILER, PLAIN_COMPILER = Compiler(MARKED), Compiler(PLAIN)
Formats = tuple[ToolFormat, ...]
HEAD = '{"name": "weather", "arguments": '
GOOD, BAD = '{"city": "Bern", "days": 3}', '{"city": "Rome", "days": 3}'
STYLES: list[tuple[Formats, str]] = [
    (("hermes",), "Hm. <tool_call>\n" + HEAD + "%s}\n</tool_call>"),
    (("granite",), "<|tool_call|>[" + HEAD + '%s}, {"name": "a-b.c", "arguments": {}}]'),
    (("llama3",), '<|python_tag|>{"name": "weather", "parameters": %s}'),
    (("llama3",), '{"type": "function", "name": "weather", "parameters": %s}'),
    (("mistral",), "[TOOL_CALLS][" + HEAD + "%s}]"),
    (("mistral",), "[TOOL_CALLS]weather[ARGS]%s[TOOL_CALLS]a-b.c[ARGS]{}"),
    (
        ("deepseek",),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n%s\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        ("deepseek",),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>%s<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        ("harmony",),
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        "<|constrain|>json<|message|>%s",
    ),
    ((), "<think>A <tool_call> here?</think>\n<tool_call>" + HEAD + "%s}</tool_call>"),
]


def tokens(text: str) -> tuple[int, ...]:
    """Special tokens where the text has marks, otherwise bytes."""
    ids: list[int] = []
    while text:
        mark = next((one for one in MARKS if text.startswith(one)), None)
        ids += [IDS[b"\xff" + mark.encode()]] if mark else tokens_of(text[0])
        text = text[len(mark or " ") :]
    return tuple(ids)


def compiled(formats: Formats, offered: Offered = OFFERED, *, marked: bool, opened: str = "") -> Matcher:
    """The grammar of an output in these formats."""
    compiler = MARKED_COMPILER if marked else PLAIN_COMPILER
    return compiler.compile(Constraint("tools", offered.text, formats=formats), opened=opened)


def accepts(matcher: Matcher, ids: Sequence[int]) -> bool:
    """Whether the output may begin with these tokens, and may then end."""
    try:
        matcher.accept(tuple(ids))
    except GrammarFault:
        return False
    bits = matcher.mask().bits
    return any(bits[end >> 3] >> (end & 7) & 1 for end in TOY.ends)


def parser(formats: Formats) -> Parser:
    """That of the responses."""
    names = frozenset(one.name for one in OFFERED.functions)
    return (
        HarmonyParser(names) if formats == ("harmony",) else OutputParser(names, formats=formats_of(formats))
    )


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("formats", "style"), STYLES)
def test_calls_are_as_strict_functions_demand(formats: Formats, style: str, marked: bool) -> None:
    """In the format of each family that writes arguments as JSON."""
    if formats == ("harmony",) and not marked:
        pytest.skip("its marks are always special tokens")
    spell = tokens if marked else tokens_of
    good = style % GOOD
    parse = parser(formats)
    parts = [*parse.feed(good), *parse.finish()]
    assert any(isinstance(part, Call) and part.name == "weather" for part in parts), parts
    assert accepts(compiled(formats, marked=marked), spell(good))
    assert not accepts(compiled(formats, marked=marked), spell(style % BAD))
    begun = compiled(formats, marked=marked)
    begun.accept(spell(style.partition("%s")[0]))
    text = write_from(begun, marked=marked)
    value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    jsonschema_rs.validator_for(ARGUMENTS).validate(value)


def write_from(matcher: Matcher, *, marked: bool) -> str:
    """Random tokens that the masks allow, up to where a JSON object is complete."""
    vocabulary, rng, text = MARKED if marked else PLAIN, random.Random(1), ""
    while text.count("{") == 0 or text.count("{") > text.count("}"):
        bits = matcher.mask().bits
        allowed = [t for t in range(len(vocabulary.tokens)) if bits[t >> 3] >> (t & 7) & 1]
        token = rng.choice([t for t in allowed if not vocabulary.tokens[t].isspace()] or allowed)
        matcher.accept((token,))
        text += vocabulary.tokens[token].decode("utf-8", "replace")
    return text


@pytest.mark.parametrize("formats", [(), ("hermes",), ("mistral",), ("harmony",)])
@pytest.mark.parametrize("marked", [True, False])
def test_text_is_free(formats: Formats, marked: bool) -> None:
    """Also what only resembles a call, and reasoning about calls."""
    spell = tokens if marked else tokens_of
    header = "<|channel|>final<|message|>" if formats == ("harmony",) and marked else ""
    for text in ("", "Yes, é!", '{"a": [1', "<tool", '{"name": "Bob"}', "weather[ARGS]", "to=functions.x"):
        if not ("[ARGS]" in text and marked):
            assert accepts(compiled(formats, marked=marked), spell(header + text)), text
    if formats != ("harmony",):
        assert accepts(compiled(formats, marked=marked), spell("<think>Hm. <tool_call>"))
        assert accepts(compiled(formats, marked=marked, opened="<think>"), spell("Hm. <tool_call>"))
        thought = f"<think>{STYLES[0][1] % BAD}</think> Yes."
        assert accepts(compiled(formats, marked=marked), spell(thought))
        assert accepts(compiled(formats, marked=marked, opened="<think>"), spell(thought[7:]))
        assert not accepts(compiled(formats, marked=marked), spell(thought + STYLES[0][1] % BAD))


def test_other_special_tokens_stay_possible_in_text() -> None:
    """Masks exclude only what begins no text and no call."""
    assert accepts(
        compiled(("hermes",), marked=True), (*tokens_of("a"), IDS[b"\xff<other>"], *tokens_of("b"))
    )


def test_a_token_may_cross_the_border_of_a_mark() -> None:
    """Only if a call can go on with its end."""
    crossing = PLAIN.tokens.index(b'>\n{"name')
    begun = (*tokens_of("Hm. <tool_call"), crossing)
    assert not accepts(compiled(("hermes",), marked=False), begun)  # A call has begun.
    call = (*begun, *tokens_of(f'": "weather", "arguments": {GOOD}}}</tool_call>'))
    assert accepts(compiled(("hermes",), marked=False), call)
    assert not accepts(compiled(("hermes",), marked=False), (*begun, *tokens_of('": "storm"')))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("formats", "style"), STYLES)
def test_beside_calls_an_answer_has_its_schema(formats: Formats, style: str, marked: bool) -> None:
    """The output is an answer or calls, and nothing else."""
    if formats == ("harmony",) and not marked:
        pytest.skip("its marks are always special tokens")
    spell = tokens if marked else tokens_of
    offered = Offered(OFFERED.functions, answer=ANSWER)
    header = "<|channel|>final <|constrain|>json<|message|>" if formats == ("harmony",) else ""

    def taken(text: str) -> bool:
        return accepts(compiled(formats, offered, marked=marked), spell(text))

    assert taken(header + '{"sum": 1}')
    assert not taken(header + '{"sum": 3}')
    assert not taken(header + "Hm.")
    style = style.removeprefix("Hm. ").replace('"type": "function", ', "")
    if not marked:
        assert not taken("<think>")  # Such a model is not trained to reason.
        style = style.rpartition("</think>")[2].lstrip()
    assert taken(style % GOOD)
    assert not taken(style % BAD)


@pytest.mark.parametrize(("formats", "call"), [
    (("lfm2",), '<|tool_call_start|>[weather(city="Rome")]<|tool_call_end|>'),
    (("gemma",), '```tool_code\nweather(city="Rome")\n```'),
])  # fmt: skip
def test_calls_that_are_not_json_stay_possible_beside_an_answer(formats: Formats, call: str) -> None:
    """Their arguments are not constrained."""
    offered = Offered(OFFERED.functions, answer=ANSWER)
    for marked, spell in ((True, tokens), (False, tokens_of)):
        assert accepts(compiled(formats, offered, marked=marked), spell(call))
        assert accepts(compiled(formats, offered, marked=marked), spell('{"sum": 2}'))
        assert not accepts(compiled(formats, offered, marked=marked), spell("Hm."))


def test_only_one_call_without_parallel_calls() -> None:
    """Beside an answer; in free text, later calls are dropped."""
    call = STYLES[0][1].removeprefix("Hm. ") % GOOD
    for parallel in (True, False):
        offered = Offered(OFFERED.functions, parallel, ANSWER)
        assert accepts(compiled(("hermes",), offered, marked=True), tokens(call + call)) is parallel


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_function() -> None:
    """Only of strict functions; a fault of the answer's schema has no function."""
    bad = {"type": "object", "properties": {"a": {"not": {}}}}
    with pytest.raises(GrammarFault, match=r"the parameters of f: .*, at /properties/a") as fault:
        compiled((), Offered((OfferedFunction("f", bad, strict=True),)), marked=True)
    assert fault.value.param == "tools"
    compiled((), Offered((OfferedFunction("f", bad), OFFERED.functions[0])), marked=True)
    with pytest.raises(GrammarFault) as fault:
        compiled((), Offered(OFFERED.functions, answer=bad), marked=True)
    assert fault.value.param is None


def test_a_request_may_have_many_functions() -> None:
    """As many as a request may have, all strict."""
    functions = tuple(OfferedFunction(f"function-{n}", ARGUMENTS, strict=True) for n in range(MAX_TOOLS))
    call = f"<tool_call>{HEAD.replace('weather', 'function-77')}%s}}</tool_call>"
    assert accepts(compiled((), Offered(functions), marked=False), tokens_of(call % GOOD))
    assert not accepts(compiled((), Offered(functions, answer=ANSWER), marked=False), tokens_of(call % BAD))


def test_random_outputs_have_only_valid_calls() -> None:
    """The parser finds in them what the grammar meant."""
    for seed in range(10):
        matcher = compiled((), Offered(OFFERED.functions, answer=ANSWER), marked=False)
        if (text := write(matcher, random.Random(seed), 120)) is None:
            continue
        parse = parser(())
        parts = [*parse.feed(text.decode()), *parse.finish()]
        for part in parts:
            if isinstance(part, Call) and part.name == "weather":
                jsonschema_rs.validator_for(ARGUMENTS).validate(json.loads(part.arguments))
            elif isinstance(part, Text) and part.text.strip():
                jsonschema_rs.validator_for(ANSWER).validate(json.loads(part.text))
