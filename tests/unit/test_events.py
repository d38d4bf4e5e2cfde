"""Events of an ended job are kept in less memory, and read the same."""

import sys

import pytest
from hypothesis import given, strategies as st

from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.events import End, EndedEvents, Error, Event, Progress, Started, Token
from worker_orcd.sampling import TokenLogprob

STARTED = Started("job-1", "a-model", "2026-01-01T00:00:00Z", 7)
CANCELLED = Error(ErrorCode.CANCELLED, "stopped", {"reason": "client"})


def reported(texts: list[str], progress: int = 0) -> list[Event]:
    """A job that reported progress this often, generated this text with a token per item, and ended."""
    parts = [Progress(100, done, 2, done * 1.5) for done in range(progress)]
    tokens = [Token(text, place) for place, text in enumerate(texts)]
    return [STARTED, *parts, *tokens, End(len(texts), 5, "length")]


@given(
    st.lists(st.text(max_size=6)),
    st.integers(0, 3),
    st.integers(-12, 12),
    st.integers(-12, 12),
    st.sampled_from([-2, -1, 1, 3]),
)
def test_they_read_like_the_list_they_are_made_of(
    texts: list[str], progress: int, a: int, b: int, step: int
) -> None:
    """By index, by slice, from the end and by iteration; with text in any script, and without text."""
    events = reported(texts, progress)
    kept = EndedEvents(events)
    assert len(kept) == len(events)
    assert list(kept) == events
    assert list(kept[a:b:step]) == events[a:b:step]
    assert [kept[place] for place in range(-len(events), len(events))] == events + events


def test_log_probabilities_are_kept_and_counted() -> None:
    """Also beside text that was held back, which has none."""
    logprobs = (TokenLogprob(7, b"a", -0.5), TokenLogprob(8, b"b", -1.5))
    plain = reported(["a", "", "b"])
    events: list[Event] = [
        STARTED,
        Token("a", 0, logprobs),
        Token("", 1, logprobs[:1]),
        Token("b", 2),
        plain[-1],
    ]
    kept = EndedEvents(events)
    assert list(kept) == events
    assert kept.size - EndedEvents(plain).size >= 3 * sys.getsizeof(logprobs[0])


def test_a_job_that_never_started_has_its_error_alone() -> None:
    """One that was cancelled while it waited."""
    kept = EndedEvents([CANCELLED])
    assert list(kept) == [CANCELLED]
    assert kept[-1] is kept[0] is CANCELLED
    for place in (1, -2):
        with pytest.raises(IndexError):
            kept[place]


def test_they_take_a_tenth_of_the_room() -> None:
    """A long answer, of tokens as long as tokens are."""
    events = reported([f" w{n % 1000}" for n in range(10_000)])
    before = sum(sys.getsizeof(e) + sys.getsizeof(e.t) for e in events if isinstance(e, Token))
    assert EndedEvents(events).size < before / 9
