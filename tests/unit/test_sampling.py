"""Sampling options travel from any request to the engine as one value."""

import json
from typing import Any

import msgspec
import pytest

from tests.fakes import running_job
from worker_orcd.api.openai.requests import ChatRequest, CompletionRequest, Generation, ResponseRequest
from worker_orcd.protocol.messages import ToEngine
from worker_orcd.sampling import SAMPLING_FIELDS, SamplingParams
from worker_orcd.worker.wire import to_prepare, to_run

GIVEN: dict[str, Any] = {
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 40,
    "repetition_penalty": 1.25,
    "seed": 2**64 - 1,
    "ignore_eos": True,
}
"""A value for each option that is not its default."""
REQUESTS = [
    (CompletionRequest, {"prompt": "a"}),
    (ChatRequest, {"messages": [{"role": "user", "content": "a"}]}),
    (ResponseRequest, {"input": "a"}),
]


def sampling_on_v1(kind: type[Generation], fields: dict[str, Any]) -> SamplingParams:
    """How the first job of a request of OpenAI's API is sampled; the seed 5 is drawn where none is given."""
    asked = kind.parse(json.dumps(fields).encode())
    if isinstance(asked, ResponseRequest):
        job = asked.wanted("resp-1", named_by_client=False)
    else:
        assert isinstance(asked, ChatRequest | CompletionRequest)
        job = asked.wanted("job-1")[0]  # type: ignore[assignment]
    return job.sampling(5 if job.seed is None else job.seed)


def test_each_option_has_a_value_here() -> None:
    """So that none is left out of what this file proves."""
    assert set(GIVEN) == set(SAMPLING_FIELDS)


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_execute_hands_each_option_to_the_engine(name: str) -> None:
    """With the prompt, and with the run."""
    job = running_job(**{name: GIVEN[name]})
    job.seed = 7 if job.request.seed is None else job.request.seed
    expected = SamplingParams(**{"seed": 7, name: GIVEN[name]})
    assert to_prepare(job).sampling == to_run(job).sampling == expected


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
@pytest.mark.parametrize(("kind", "fields"), REQUESTS)
def test_the_openai_requests_hand_each_option_to_the_job(
    kind: type[Generation], fields: dict[str, Any], name: str
) -> None:
    """By the same names."""
    assert sampling_on_v1(kind, {**fields, name: GIVEN[name]}) == SamplingParams(
        **{"seed": 5, name: GIVEN[name]}
    )


@pytest.mark.parametrize(("kind", "fields"), REQUESTS)
def test_on_v1_an_option_that_is_null_counts_as_left_out(
    kind: type[Generation], fields: dict[str, Any]
) -> None:
    """Many clients send null for what is not set."""
    nothing = dict.fromkeys(SAMPLING_FIELDS)
    assert sampling_on_v1(kind, {**fields, **nothing}) == SamplingParams(seed=5)


def test_all_options_survive_the_wire() -> None:
    """The engine gets what was sent."""
    run = to_run(running_job(**{**GIVEN, "seed": 7}))
    assert run.sampling == SamplingParams(**{**GIVEN, "seed": 7})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(run), type=ToEngine) == run
