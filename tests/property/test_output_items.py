"""However an output is cut into tokens and however it ends, its items are the same for every reader."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import pytest
from hypothesis import example, given, settings, strategies as st

from tests.fakes import at, freed_at, running_job, stop_request
from tests.property.test_tool_calls import OUTPUTS
from worker_orcd.api.openai.output_items import Added, Change, Done, Grown, Output, OutputItem
from worker_orcd.jobs.job import Job
from worker_orcd.tool_calls.harmony import HarmonyParser
from worker_orcd.tool_calls.parser import OutputParser

PARSERS = {"marks": OutputParser, "harmony": HarmonyParser}
HARMONY = st.lists(
    st.sampled_from(
        [
            "<|channel|>analysis<|message|>why<|end|>",
            '<|channel|>commentary to=functions.f<|message|>{"a": "}"}<|call|>',
            '<|channel|>commentary to=functions.f<|message|>{"a": 1',
            *(
                "<|start|>assistant",
                "<|channel|>final<|message|>",
                "<|message|>",
                "<|",
                "x",
                "{",
                "}",
                "\\",
                '"',
            ),
        ]
    ),
    max_size=8,
).map("".join)


End = Literal["stop", "length", "cancelled"]


def ended_job(pieces: Sequence[str], end: End) -> Job:
    """A job that has generated these tokens and has ended so."""
    job = running_job()
    for number, piece in enumerate(pieces):
        job.token(at(2), number, piece)
    if end == "cancelled":
        job.request_stop(stop_request())
        job.stopped(at(3), freed_at(3))
    else:
        job.finished(at(3), end, freed_at(3))
    return job


def output(format_: str, *, never_empty: bool = False) -> Output:
    """An output before its first event."""
    return Output(lambda: PARSERS[format_](frozenset({"f"}), streams=True), never_empty=never_empty)


def facts(items: Sequence[OutputItem]) -> list[tuple[str, int, str, str, str]]:
    """What clients see of items."""
    return [(one.kind, one.place, one.name, one.text, one.status) for one in items]


@settings(max_examples=60)
@given(
    st.one_of(st.tuples(st.just("marks"), OUTPUTS), st.tuples(st.just("harmony"), HARMONY)),
    st.lists(st.integers(0, 300), max_size=12),
    st.sampled_from(get_args(End)),
)
@example(("harmony", "x<|channel|>analysis<|message|>why<|end|>"), [1], "stop")
@example(("harmony", '<|channel|>commentary to=functions.f<|message|>{"a": 1<|end|>'), [54], "stop")
def test_a_streams_items_are_those_of_the_complete_answer(
    said: tuple[str, str], cuts: list[int], end: End
) -> None:
    """Each begins once, and its deltas joined are its text. Only complete calls are done."""
    format_, text = said
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    job = ended_job([text[a:b] for a, b in pairwise(places)], end)
    streamed, complete = output(format_), output(format_)
    changes: list[Change] = [change for event in job.events for change in streamed.take(event)]
    complete.take_all(job)
    assert facts(streamed.items) == facts(complete.items)

    assert [change.item for change in changes if isinstance(change, Added)] == streamed.items
    done = [change.item for change in changes if isinstance(change, Done)]
    assert done == [item for item in streamed.items if item in done]
    for item in streamed.items:
        grown = [change.text for change in changes if isinstance(change, Grown) and change.item is item]
        assert "".join(grown) == item.text
        assert item.status != "in_progress"
        if item.kind != "function_call":
            continue
        assert (item in done) == (item.status == "completed")
        if item.status == "completed":
            assert isinstance(json.loads(item.text), dict)
        else:
            with pytest.raises(ValueError, match=r"."):
                json.loads(item.text)


@pytest.mark.parametrize(("end", "items"), [("stop", 1), ("length", 1), ("cancelled", 0)])
def test_an_output_without_text_is_a_message_if_that_is_wanted(end: End, items: int) -> None:
    """Of a job that came to its natural end."""
    job = ended_job(["", ""], end)
    for never_empty in (False, True):
        empty = output("marks", never_empty=never_empty)
        empty.take_all(job)
        assert [item.text for item in empty.items] == [""] * items * never_empty
