"""Log probabilities, against their definition."""

import json

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.fakes import HandLoop, run_message
from worker_orcd.api.openai.chat_bodies import ChatCompletion
from worker_orcd.api.openai.response_bodies import Completion
from worker_orcd.engine.logprobs import logprobs_of
from worker_orcd.jobs.events import Event, Token
from worker_orcd.sampling import Logprobs, SamplingParams, TokenLogprob, logprobs_data
from worker_orcd.tool_calls.parser import OutputParser


def name(token: int) -> bytes:
    """Of any token."""
    return b"<%d>" % token


@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(0, 2999), st.floats(0.01, 100))
def test_they_are_the_log_of_the_softmax(seed: int, best: int, token: int, spread: float) -> None:
    """The chosen token first, then the likeliest, in order."""
    logits = np.random.default_rng(seed).normal(0, spread, 3000).astype(np.float32)
    found = logprobs_of(logits.tobytes(), token, best, name)
    shifted = logits.astype(np.float64) - logits.max()
    expected = shifted - np.log(np.exp(shifted).sum())
    likeliest = np.argsort(-expected, kind="stable")[:best].tolist()
    assert [one.token for one in found] == [token, *likeliest]
    assert [one.piece for one in found] == [name(one) for one in (token, *likeliest)]
    assert np.allclose(
        [one.logprob or 0.0 for one in found], expected[[token, *likeliest]], rtol=1e-6, atol=1e-6
    )


def test_a_token_that_cannot_come_has_a_number_that_json_has() -> None:
    """JSON has no minus infinity."""
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    chosen, *best = logprobs_of(logits.tobytes(), 1, 3, name)
    assert chosen.logprob == -9999.0
    assert [one.token for one in best] == [0, 2, 1]
    assert json.dumps([one.data() for one in best], allow_nan=False)


def test_part_of_a_character_is_shown_as_its_bytes() -> None:
    """It is not valid text by itself."""
    whole, part = TokenLogprob(1, "é".encode(), -1.0), TokenLogprob(2, b"\xc3", -1.0)
    assert (whole.text, part.text) == ("é", "bytes:\\xc3")
    assert logprobs_data((part, whole))["bytes"] == [0xC3]


@pytest.mark.parametrize("wanted", [None, 0, 2])
def test_the_engine_reports_them_for_each_token_if_they_are_wanted(wanted: int | None) -> None:
    """By the logits that the token was drawn from; they change nothing of what is drawn."""
    loop = HandLoop()
    for run, logprobs in ((1, wanted), (2, None)):
        loop.post(run_message(run, "hello", max_tokens=3, sampling=SamplingParams(seed=5, logprobs=logprobs)))
    loop.finish()
    drawn = {run: [out for step in loop.steps for out in step.tokens if out.run == run] for run in (1, 2)}
    assert [out.token for out in drawn[1]] == [out.token for out in drawn[2]]
    for out in drawn[1]:
        assert len(out.logprobs) == (0 if wanted is None else 1 + wanted)
        assert [one.token for one in out.logprobs[:1]] == [out.token] * (wanted is not None)
    assert not any(out.logprobs for out in drawn[2])
    loop.close()


def test_a_requeued_run_reports_the_same_ones_from_there_on() -> None:
    """They depend on the tokens so far alone."""
    params = SamplingParams(seed=5, logprobs=2)

    def reported(*generated: int) -> list[tuple[int | None, Logprobs]]:
        loop = HandLoop()
        loop.post(run_message(1, "hello", max_tokens=4, sampling=params, generated=generated))
        loop.finish()
        found = [(out.token, out.logprobs) for step in loop.steps for out in step.tokens]
        loop.close()
        return found

    undisturbed = reported()
    assert reported(*(token for token, _ in undisturbed[:2] if token is not None)) == undisturbed[2:]


def one(text: str, logprob: float) -> TokenLogprob:
    """A token with this text."""
    return TokenLogprob(len(text), text.encode(), logprob)


LOGPROBS: list[Logprobs] = [
    (one("Hé", -0.5), one("Hé", -0.5), one("Yes", -1.5)),
    (one(" you", -2.0), one(" me", -0.25), one(" you", -2.0)),
    (one("!", -0.125), one("!", -0.125), one(".", -3.0)),
]
EVENTS: list[Event] = [Token("Hé", 0, LOGPROBS[0]), Token("", 1, LOGPROBS[1]), Token(" you!", 2, LOGPROBS[2])]


def test_completions_have_four_lists_whole_and_streamed() -> None:
    """The text of held-back tokens comes later, their log probabilities do not."""
    whole = Completion("c", "m", 0, 1, include_usage=False)._logprobs(0, EVENTS)
    assert whole == {
        "tokens": ["Hé", " you", "!"],
        "token_logprobs": [-0.5, -2.0, -0.125],
        "top_logprobs": [
            {"Hé": -0.5, "Yes": -1.5},
            {" you": -2.0, " me": -0.25},
            {"!": -0.125, ".": -3.0},
        ],
        "text_offset": [0, 2, 6],
    }
    streamed = Completion("c", "m", 0, 2, include_usage=False)
    chunks = [
        chunk["choices"][0]["logprobs"]
        for event in EVENTS
        for place in (0, 1)
        for chunk in streamed.chunks(place, event)
        if place == 0
    ]
    assert {key: [value for chunk in chunks for value in chunk[key]] for key in whole} == whole


def test_chat_completions_have_a_list_of_tokens() -> None:
    """In each chunk its own."""
    body = ChatCompletion("c", "m", 0, 1, include_usage=False, parser=OutputParser)
    expected = [logprobs_data(logprobs) for logprobs in LOGPROBS]
    assert body._logprobs(0, EVENTS) == {"content": expected, "refusal": None}
    chunks = [chunk["choices"][0] for event in EVENTS for chunk in body.chunks(0, event)]
    assert [chunk["logprobs"]["content"] for chunk in chunks] == [[one] for one in expected]
    assert body._logprobs(0, [Token("a", 0)]) is None
