"""Sampling options travel from any request to the engine as one value."""

import json
from typing import Any

import msgspec
import pytest

from tests.fakes import execute, running_job
from worker_orcd.api.openai.chat_request import ChatRequest
from worker_orcd.api.openai.completion_request import CompletionRequest
from worker_orcd.api.openai.requests import Generation
from worker_orcd.api.openai.response_request import ResponseRequest
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.request import Ceilings, ExecuteRequest
from worker_orcd.protocol.messages import ToEngine
from worker_orcd.sampling import (
    MAX_INFILL_CANDIDATES,
    MAX_LOGIT_BIASES,
    MAX_SAMPLERS,
    MAX_STOP_TOKEN_IDS,
    SAMPLING_FIELDS,
    SamplingParams,
)
from worker_orcd.worker.wire import to_submit

GIVEN: dict[str, Any] = {
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 40,
    "repetition_penalty": 1.25,
    "min_p": 0.125,
    "presence_penalty": -1.5,
    "frequency_penalty": 0.5,
    "logit_bias": {0: -100.0, 49151: 2.5},
    "min_tokens": 3,
    "stop_token_ids": (1, 2),
    "samplers": ("temperature", "top_k"),
    "n_indent": 4,
    "t_max_predict_ms": 500,
    "logprobs": 3,
    "seed": 2**64 - 1,
    "ignore_eos": True,
}
"""A value for each option that is not its default."""
USER = {"role": "user", "content": "a"}
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
    """So that this file covers all options."""
    assert set(GIVEN) == set(SAMPLING_FIELDS)


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_execute_hands_each_option_to_the_engine(name: str) -> None:
    """With the prompt, and with the run."""
    job = running_job(**{name: GIVEN[name]})
    job.seed = 7 if job.request.seed is None else job.request.seed
    expected = SamplingParams(**{"seed": 7, name: GIVEN[name]})
    assert to_submit(job).sampling == expected


@pytest.mark.parametrize("name", [name for name in SAMPLING_FIELDS if name != "logprobs"])
@pytest.mark.parametrize(("kind", "fields"), REQUESTS)
def test_the_openai_requests_hand_each_option_to_the_job(
    kind: type[Generation], fields: dict[str, Any], name: str
) -> None:
    """By the same names."""
    assert sampling_on_v1(kind, {**fields, name: GIVEN[name]}) == SamplingParams(
        **{"seed": 5, name: GIVEN[name]}
    )


@pytest.mark.parametrize(
    ("request_of", "fields", "wanted"),
    [
        (REQUESTS[0], {"logprobs": 3}, 3),
        (REQUESTS[0], {"logprobs": 0}, 0),
        (REQUESTS[1], {"logprobs": True, "top_logprobs": 3}, 3),
        (REQUESTS[1], {"logprobs": True}, 0),
        (REQUESTS[1], {"logprobs": False, "top_logprobs": 0}, None),
        (REQUESTS[2], {"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
        (REQUESTS[2], {"include": ["message.output_text.logprobs"]}, 0),
        (REQUESTS[2], {"top_logprobs": 3}, None),
    ],
    ids=str,
)
def test_each_openai_request_asks_for_logprobs_in_its_own_way(
    request_of: tuple[type[Generation], dict[str, Any]], fields: dict[str, Any], wanted: int | None
) -> None:
    """As a number, as two fields, or by `include`."""
    kind, usual = request_of
    assert sampling_on_v1(kind, {**usual, **fields}).logprobs == wanted


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (CompletionRequest, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (ChatRequest, {"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (ChatRequest, {"messages": [USER], "top_logprobs": 2}, "top_logprobs"),
        (ChatRequest, {"messages": [USER], "logprobs": 1}, "logprobs"),
        (ResponseRequest, {"input": "a", "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_logprobs_out_of_range_are_refused_by_name(
    kind: type[Generation], fields: dict[str, Any], param: str
) -> None:
    """So is a number of them in a request that does not ask for any."""
    with pytest.raises(JobError) as caught:
        kind.parse(json.dumps(fields).encode())
    assert (caught.value.http_status, caught.value.param) == (400, param)


@pytest.mark.parametrize(("kind", "fields"), REQUESTS)
def test_on_v1_an_option_that_is_null_counts_as_left_out(
    kind: type[Generation], fields: dict[str, Any]
) -> None:
    """Many clients send null for unset options."""
    nothing = dict.fromkeys(SAMPLING_FIELDS)
    assert sampling_on_v1(kind, {**fields, **nothing}) == SamplingParams(seed=5)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("min_p", 1.01, "min_p"),
        ("min_p", -0.01, "min_p"),
        ("presence_penalty", 2.01, "presence_penalty"),
        ("frequency_penalty", -2.01, "frequency_penalty"),
        ("logit_bias", {"a": 1}, "logit_bias"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {"1": 100.5}, "logit_bias"),
        ("logit_bias", [[1, 1.0]], "logit_bias"),
        ("logit_bias", {str(n): 1 for n in range(MAX_LOGIT_BIASES + 1)}, "logit_bias"),
        ("min_tokens", -1, "min_tokens"),
        ("samplers", ["mirostat"], "samplers"),
        ("samplers", "kpt", "samplers"),
        ("samplers", ["top_k"] * (MAX_SAMPLERS + 1), "samplers"),
        ("n_indent", -1, "n_indent"),
        ("t_max_predict_ms", -2, "t_max_predict_ms"),
        ("stop_token_ids", [-1], "stop_token_ids"),
        ("stop_token_ids", list(range(MAX_STOP_TOKEN_IDS + 1)), "stop_token_ids"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field: str, value: object, param: str) -> None:
    """On both APIs."""
    body = json.dumps({"job_id": "a", "prompt": "a", field: value}).encode()
    for kind in (ExecuteRequest, CompletionRequest):
        with pytest.raises(JobError) as caught:
            kind.parse(body)
        assert (caught.value.http_status, caught.value.param) == (400, param)


def test_min_tokens_may_not_be_above_max_tokens() -> None:
    """Both at once cannot be met."""
    with pytest.raises(JobError, match="above max_tokens") as caught:
        execute(min_tokens=9, max_tokens=8).within(Ceilings())
    assert caught.value.param == "min_tokens"
    assert execute(min_tokens=8, max_tokens=8).within(Ceilings()).min_tokens == 8


@pytest.mark.parametrize(
    "fields",
    [
        {"samplers": ("infill",), "top_k": 40},
        {"samplers": ("infill", "top_k"), "top_k": 40},
        {"samplers": ("top_k", "infill")},
        {"samplers": ("top_k", "infill"), "top_k": MAX_INFILL_CANDIDATES + 1},
        {"samplers": ("top_k", "infill"), "top_k": 40, "min_tokens": 1},
        {"samplers": ("top_k", "infill"), "top_k": 40, "grammar": 'root ::= "a"'},
    ],
    ids=str,
)
def test_the_infill_sampler_needs_few_candidates_and_a_free_end(fields: dict[str, Any]) -> None:
    """It compares each pair of candidates: with a whole vocabulary a token would take minutes."""
    with pytest.raises(JobError) as caught:
        execute(**fields).within(Ceilings())
    assert (caught.value.http_status, caught.value.param) == (400, "samplers")
    execute(samplers=("top_k", "infill"), top_k=MAX_INFILL_CANDIDATES).within(Ceilings())


@pytest.mark.parametrize(
    "given", [{"top_k": 101}, {"logit_bias": {3: 1.0, 100: 1.0}}, {"stop_token_ids": (100,)}], ids=str
)
def test_a_token_beyond_the_vocabulary_is_refused_by_name(given: dict[str, Any]) -> None:
    """Only the engine knows the vocabulary."""
    assert [param for param, _ in SamplingParams(**given).beyond(100)] == list(given)
    assert not list(SamplingParams(**given).beyond(101))


@pytest.mark.parametrize(
    ("theirs", "ours", "value", "off", "invalid"),
    [("repeat_penalty", "repetition_penalty", 1.25, 1.0, -2), ("n_predict", "max_tokens", 7, None, -3)],
)
def test_what_llama_server_calls_otherwise_means_the_same(
    theirs: str, ours: str, value: float, off: float | None, invalid: int
) -> None:
    """Its names are accepted; the worker's own name takes precedence; an error has the name that the client
    used."""

    def jobs_value(**fields: object) -> object:
        body = json.dumps({"prompt": "a", **fields}).encode()
        return getattr(CompletionRequest.parse(body).wanted("job-1")[0], ours)

    assert jobs_value(**{theirs: value}) == value
    assert jobs_value(**{theirs: 2, ours: value}) == value
    assert jobs_value(**{theirs: -1}) == off
    with pytest.raises(JobError) as caught:
        jobs_value(**{theirs: invalid})
    assert caught.value.param == theirs


def test_all_options_survive_the_wire() -> None:
    """The engine gets what was sent."""
    run = to_submit(running_job(**{**GIVEN, "seed": 7}))
    assert run.sampling == SamplingParams(**{**GIVEN, "seed": 7})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(run), type=ToEngine) == run
