"""However an output is cut into pieces, the same text, reasoning and calls are found in it."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.tool_calls.call import Arguments, Call, CallBegun, CallEnded, Part, Reasoning, Text
from worker_orcd.tool_calls.formats import CALL_MARKS
from worker_orcd.tool_calls.parser import OutputParser

WHOLE = [
    '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>',
    '[TOOL_CALLS][{"name": "f", "arguments": {}}]',
    "<|tool_call_start|>[f(a=1)]<|tool_call_end|>",
    "```tool_code\nf(a='x')\n```",
    "<think>why</think>",
    '{"name": "f", "parameters": {}}',
]
OUTPUTS = st.lists(
    st.sampled_from([*WHOLE, *sorted(CALL_MARKS), " ", "\n", "{", "}", '"', "<", "tool", "🙂", "f(a=1)"]),
    max_size=8,
).map("".join)


def parts_of(pieces: list[str], *, parallel: bool = True, streams: bool = False) -> list[Part]:
    """What a parser finds in these pieces, with adjacent texts joined."""
    parser = OutputParser(frozenset({"f"}), parallel=parallel, streams=streams)
    return joined([part for piece in pieces for part in parser.feed(piece)] + parser.finish())


def joined(found: list[Part]) -> list[Part]:
    """These parts, with adjacent texts as one."""
    together: list[Part] = []
    for part in found:
        last = together[-1] if together else None
        if isinstance(part, JOINS) and isinstance(last, JOINS) and type(last) is type(part):
            together[-1] = type(part)(last.text + part.text)
        else:
            together.append(part)
    return together


JOINS = (Text, Reasoning, Arguments)


@settings(max_examples=40)
@given(OUTPUTS, st.lists(st.integers(0, 300), max_size=12), st.booleans(), st.booleans())
def test_any_split_gives_the_same(output: str, cuts: list[int], parallel: bool, streams: bool) -> None:
    """In one piece, in some, and character by character."""
    places = [0, *sorted(min(cut, len(output)) for cut in cuts), len(output)]
    pieces = [output[a:b] for a, b in pairwise(places)]
    whole = parts_of([output], parallel=parallel, streams=streams)
    assert parts_of(pieces, parallel=parallel, streams=streams) == whole
    assert parts_of(list(output), parallel=parallel, streams=streams) == whole


@settings(max_examples=40)
@given(OUTPUTS)
def test_a_stream_has_the_calls_of_the_complete_answer(output: str) -> None:
    """In the same order, with the same arguments; beside them calls that turned out to be malformed."""
    in_parts = parts_of([output], streams=True)
    ended = [
        (begun.name, json.loads(arguments.text))
        for begun, arguments, end in zip(in_parts, in_parts[1:], in_parts[2:], strict=False)
        if isinstance(begun, CallBegun) and isinstance(arguments, Arguments) and isinstance(end, CallEnded)
    ]
    calls = [part for part in parts_of([output]) if isinstance(part, Call)]
    assert ended == [(call.name, json.loads(call.arguments)) for call in calls]


@settings(max_examples=40)
@given(OUTPUTS)
def test_without_calls_and_reasoning_the_text_is_the_output(output: str) -> None:
    """What only looks like a call is not lost."""
    parts = parts_of([output])
    if "<think>" not in output and "[THINK]" not in output and all(isinstance(part, Text) for part in parts):
        assert "".join(part.text for part in parts if isinstance(part, Text)) == output


@settings(max_examples=40)
@given(OUTPUTS, st.integers(0, 300), st.booleans())
def test_a_broken_off_output_has_no_call_that_was_not_complete(output: str, end: int, streams: bool) -> None:
    """What a stream had of it is no JSON object."""
    parser = OutputParser(frozenset({"f"}), streams=streams)
    found = parser.feed(output[:end])
    left = parser.abandon()
    assert not [part for part in left if not isinstance(part, Text | Reasoning)]
    parts = joined(found + left)
    for place, part in enumerate(parts):
        if isinstance(part, Arguments) and CallEnded() not in parts[place + 1 : place + 2]:
            with pytest.raises(ValueError, match=r"."):
                json.loads(part.text)
