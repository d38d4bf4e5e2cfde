"""Bodies of `POST /cancel` and `POST /execute`: which are accepted, and how the others are refused (contract, 2 and
3)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.request import CancelRequest, Ceilings, ExecuteRequest

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
IDS = st.text(ALPHABET, min_size=1, max_size=256)
EXAMPLE = {
    "job_id": "test-123",
    "prompt": "Write a long story...",
    "max_tokens": 1000,
    "temperature": 0.7,
    "seed": 42,
}

NOT_JSON = [
    b"",
    b"   ",
    b"{",
    b"job_id=test-123",
    b"{'job_id': 'a'}",
    b'{"job_id": "a"} trailing',
    b'{"job_id": "a",}',
    b'{"job_id": "\xff"}',
    b'\xff\xfe{"job_id": "a"}',
    b"[" * 5000,
    b'{"job_id": "a", "seed": ' + b"9" * 5000 + b"}",
]
NO_OBJECT = [b"[]", b'["job_id"]', b"null", b"true", b"7", b'"test-123"']


def refusal_of_cancel(raw: bytes) -> JobError:
    """How this body of a cancel is refused."""
    with pytest.raises(JobError) as refused:
        CancelRequest.parse(raw)
    return refused.value


def refusal(**given: Any) -> JobError:
    """How an otherwise good execute body with these fields is refused."""
    return refusal_of_execute(json.dumps({"job_id": "test-123", "prompt": "x", **given}).encode())


def refusal_of_execute(raw: bytes, ceilings: Ceilings | None = None) -> JobError:
    """How this body of an execute is refused."""
    with pytest.raises(JobError) as refused:
        ExecuteRequest.parse(raw).within(ceilings or Ceilings())
    return refused.value


def taken(**given: Any) -> ExecuteRequest:
    """The request of a minimal execute body with these fields."""
    raw = json.dumps({"job_id": "test-123", "prompt": "x", **given}).encode()
    return ExecuteRequest.parse(raw).within(Ceilings())


# POST /cancel


def test_the_answer_to_a_cancel_is_exactly_status_and_job_id() -> None:
    """The body of every 202 has these two keys, in this order, and nothing else."""
    answer = CancelRequest.parse(b'{"job_id": "job-xyz"}').answer()
    assert json.dumps(answer) == '{"status": "cancelling", "job_id": "job-xyz"}'


@given(IDS)
@settings(deadline=None)
def test_every_id_of_the_alphabet_can_be_cancelled_and_comes_back_unchanged(job_id: str) -> None:
    """Any 1 to 256 characters of the alphabet are a valid id."""
    parsed = CancelRequest.parse(json.dumps({"job_id": job_id}).encode())
    assert parsed.answer() == {"status": "cancelling", "job_id": job_id}


@given(st.text(max_size=20).filter(lambda text: not text or not set(text) <= set(ALPHABET)))
@settings(deadline=None)
def test_an_id_outside_the_alphabet_is_refused(job_id: str) -> None:
    """The refusal is INVALID_REQUEST, also for a valid id with a line end."""
    raw = json.dumps({"job_id": job_id}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert refusal_of_cancel(raw).http_status == 400


@pytest.mark.parametrize(
    "job_id",
    ["", "a" * 257, "a b", "a\n", "a/b", "ä", "a\x00", "job\u200b", "\uff41", "a*", "a%"],
)
def test_a_malformed_id_is_refused_and_the_field_is_named(job_id: str) -> None:
    """Empty, too long, or outside the alphabet: 400 with the field's name."""
    error = refusal_of_cancel(json.dumps({"job_id": job_id}).encode())
    assert (error.code, error.http_status, error.param) == (ErrorCode.INVALID_REQUEST, 400, "job_id")
    assert "job_id" in error.message


def test_an_id_of_256_characters_is_taken() -> None:
    """256 characters are allowed."""
    assert CancelRequest.parse(json.dumps({"job_id": "a" * 256}).encode()).job_id == "a" * 256


@pytest.mark.parametrize("raw", NOT_JSON)
def test_a_cancel_that_is_not_json_is_refused(raw: bytes) -> None:
    """The answer is a 400 that names no field."""
    error = refusal_of_cancel(raw)
    assert (error.code, error.http_status, error.param) == (ErrorCode.INVALID_REQUEST, 400, None)
    assert error.message == "the body is not valid JSON"


@pytest.mark.parametrize("raw", NO_OBJECT)
def test_a_cancel_that_is_no_json_object_is_refused(raw: bytes) -> None:
    """The 400 says that an object is required."""
    error = refusal_of_cancel(raw)
    assert (error.http_status, error.param) == (400, None)
    assert error.message == "the body must be a JSON object"


def test_a_cancel_without_an_id_is_refused_as_missing() -> None:
    """The 400 names the missing field."""
    error = refusal_of_cancel(b"{}")
    assert (error.param, error.message) == ("job_id", "job_id is required")


@pytest.mark.parametrize("value", [5, 1.5, True, None, ["a"], {"a": "b"}])
def test_the_id_of_a_cancel_is_not_coerced_from_another_type(value: object) -> None:
    """A number is not an id, even if its digits would be."""
    assert refusal_of_cancel(json.dumps({"job_id": value}).encode()).param == "job_id"


def test_unknown_fields_of_a_cancel_are_ignored() -> None:
    """Unknown fields are ignored; only a body that does not identify its target is malformed (contract, 3)."""
    asked = CancelRequest.parse(b'{"job_id": "a", "reason": "outdated", "force": true}')
    assert asked == CancelRequest(job_id="a")
    assert asked.answer() == {"status": "cancelling", "job_id": "a"}


def test_a_cancel_of_a_group_is_answered_with_its_name() -> None:
    """The same answer, with the group in the place of the job."""
    asked = CancelRequest.parse(b'{"group": "g"}')
    assert (asked.job_id, asked.group) == (None, "g")
    assert asked.answer() == {"status": "cancelling", "group": "g"}


@pytest.mark.parametrize(
    "body", [{"job_id": "a", "group": "g"}, {"group": 5}, {"group": ""}, {"group": "a b"}]
)
def test_a_group_at_fault_is_named(body: dict[str, object]) -> None:
    """A group beside a job id, or a malformed group, is refused with `group` as the field."""
    error = refusal_of_cancel(json.dumps(body).encode())
    assert (error.http_status, error.param) == (400, "group")


def test_of_two_equal_names_the_last_counts() -> None:
    """JSON leaves duplicate names open; the last one counts, as in most parsers."""
    assert CancelRequest.parse(b'{"job_id": "a", "job_id": "b"}').job_id == "b"


@pytest.mark.parametrize(
    "raw", [b'{"job_id": "\\ud800"}', b'{"\\udfff": 1}', b'{"job_id": "\\ud83d\\ud83d"}']
)
def test_a_lone_surrogate_in_a_cancel_is_refused(raw: bytes) -> None:
    """Text that cannot be encoded as UTF-8 is never accepted."""
    assert refusal_of_cancel(raw).http_status == 400


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")))
@settings(deadline=None)
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    """Arbitrary bytes raise no exception other than the one that becomes a 400, in both bodies."""
    for parse in (CancelRequest.parse, ExecuteRequest.parse):
        try:
            parse(raw)
        except JobError as error:
            assert error.body()["code"] == "INVALID_REQUEST"  # noqa: PT017  # Either way is right.


def test_a_refusal_has_the_one_shape_of_errors() -> None:
    """`code`, `message`, `retriable`, and `param` only when a field is at fault."""
    assert refusal_of_cancel(b"{}").body() == {
        "code": "INVALID_REQUEST",
        "message": "job_id is required",
        "retriable": False,
        "param": "job_id",
    }
    assert set(refusal_of_cancel(b"").body()) == {"code", "message", "retriable"}


def test_a_very_long_unknown_name_is_shortened_in_the_refusal() -> None:
    """A refusal does not grow with the request."""
    error = refusal_of_execute(json.dumps({"job_id": "a", "prompt": "x", "y" * 100_000: 1}).encode())
    assert error.param == "y" * 64
    assert len(error.message) < 120


# POST /execute


def test_the_body_of_the_contract_is_taken_as_written() -> None:
    """The curl line's body works."""
    request = ExecuteRequest.parse(json.dumps(EXAMPLE).encode()).within(Ceilings())
    assert (request.job_id, request.max_tokens, request.temperature, request.seed) == (
        "test-123",
        1000,
        0.7,
        42,
    )


def test_the_defaults_are_those_of_the_contract() -> None:
    """Only `job_id` and `prompt` are required; all else is off."""
    request = taken()
    assert (request.template, request.ignore_eos, request.max_tokens) == ("auto", False, None)
    assert (request.temperature, request.top_p, request.top_k, request.repetition_penalty) == (
        1.0,
        1.0,
        0,
        1.0,
    )
    assert (request.stop, request.seed, request.timeout_ms, request.on_disconnect) == (
        (),
        None,
        None,
        "cancel",
    )


@pytest.mark.parametrize("name", ["job_id", "prompt"])
def test_what_is_required_is_asked_for_by_name(name: str) -> None:
    """Each missing field is named."""
    body = {"job_id": "a", "prompt": "x"}
    del body[name]
    error = refusal_of_execute(json.dumps(body).encode())
    assert (error.param, error.message) == (name, f"{name} is required")


IN_BOUNDS = [
    ("prompt", "x"),
    ("prompt", "x" * 100_000),
    ("prompt", "漢😀" * 100),
    ("template", "auto"),
    ("template", "none"),
    ("ignore_eos", True),
    ("max_tokens", 1),
    ("max_tokens", 2048),
    ("max_tokens", 10**6),
    ("max_tokens", None),
    ("temperature", 0),
    ("temperature", 0.0),
    ("temperature", 2),
    ("temperature", 2.0),
    ("top_p", 0),
    ("top_p", 1),
    ("top_p", 0.5),
    ("top_k", 0),
    ("top_k", 2**31 - 1),
    ("repetition_penalty", 0.01),
    ("repetition_penalty", 2),
    ("seed", 0),
    ("seed", 2**64 - 1),
    ("seed", None),
    ("timeout_ms", 1),
    ("timeout_ms", 10**12),
    ("on_disconnect", "cancel"),
    ("on_disconnect", "continue"),
    ("group", None),
    ("group", "a.B-1:_"),
]


@pytest.mark.parametrize(("name", "value"), IN_BOUNDS)
def test_a_value_within_its_bounds_is_taken_as_it_is(name: str, value: object) -> None:
    """Bounds belong to what is allowed."""
    assert getattr(taken(**{name: value}), name) == value


OUT_OF_BOUNDS = [
    ("job_id", ""),
    ("job_id", "a" * 257),
    ("job_id", "a b"),
    ("prompt", ""),
    ("template", "chatml"),
    ("template", "AUTO"),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("temperature", -0.1),
    ("temperature", 2.01),
    ("top_p", -0.1),
    ("top_p", 1.01),
    ("top_k", -1),
    ("top_k", 2**31),
    ("repetition_penalty", 0),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -0.5),
    ("repetition_penalty", 2.01),
    ("seed", -1),
    ("seed", 2**64),
    ("stop", ["a"] * 17),
    ("stop", [""]),
    ("stop", ["a" * 4097]),
    ("timeout_ms", 0),
    ("timeout_ms", -5),
    ("on_disconnect", "detach"),
    ("group", "g h"),
    ("group", ""),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_BOUNDS)
def test_a_value_outside_its_bounds_is_400_and_names_the_field(name: str, value: object) -> None:
    """INVALID_REQUEST, 400, never 422, no retry, and the field in `param`."""
    error = refusal(**{name: value})
    assert (error.code, error.http_status, error.retriable, error.param) == (
        ErrorCode.INVALID_REQUEST,
        400,
        False,
        name,
    )
    assert error.message.startswith(name)


WRONG_TYPES = [
    ("prompt", 5),
    ("prompt", None),
    ("prompt", ["x"]),
    ("ignore_eos", 1),
    ("ignore_eos", "true"),
    ("max_tokens", "5"),
    ("max_tokens", 5.0),
    ("max_tokens", True),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", None),
    ("top_p", "0.5"),
    ("top_k", 1.0),
    ("top_k", False),
    ("repetition_penalty", "1"),
    ("seed", "7"),
    ("seed", 7.0),
    ("seed", True),
    ("stop", "x"),
    ("stop", None),
    ("stop", [1]),
    ("stop", {"a": 1}),
    ("timeout_ms", "100"),
    ("timeout_ms", 1.5),
    ("template", None),
    ("group", 5),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_refused_not_coerced(name: str, value: object) -> None:
    """What a client did not mean is not guessed."""
    error = refusal(**{name: value})
    assert (error.http_status, error.param) == (400, name)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_a_number_that_is_not_finite_is_refused(name: str, number: str) -> None:
    """NaN and infinity never reach a sampler, however they are written."""
    raw = f'{{"job_id": "a", "prompt": "x", "{name}": {number}}}'.encode()
    error = refusal_of_execute(raw)
    assert (error.http_status, error.param) == (400, name)


def test_a_penalty_of_zero_is_refused_because_it_yields_nan() -> None:
    """The neutral value is 1; exactly 0 would divide by it."""
    error = refusal(repetition_penalty=0)
    assert error.message == "repetition_penalty: input should be greater than 0"


def test_an_unknown_field_is_refused_by_name_even_beside_another_fault() -> None:
    """A misspelled name is reported first, since it explains the other fault."""
    error = refusal(max_token=5, temperature=9)
    assert (error.param, error.message) == ("max_token", "unknown field 'max_token'")


def test_a_fault_inside_a_list_names_the_field_and_the_place() -> None:
    """`param` is the field; the sentence says which item."""
    error = refusal(stop=["a", ""])
    assert error.param == "stop"
    assert error.message.startswith("stop.1:")


def test_four_stop_strings_are_taken_in_their_order() -> None:
    """They keep the order of the request."""
    assert taken(stop=["d", "c", "b", "a"]).stop == ("d", "c", "b", "a")


@pytest.mark.parametrize("raw", NOT_JSON)
def test_an_execute_that_is_not_json_is_refused(raw: bytes) -> None:
    """The answer is a 400 that names no field."""
    error = refusal_of_execute(raw)
    assert (error.http_status, error.param, error.message) == (400, None, "the body is not valid JSON")


@pytest.mark.parametrize("raw", NO_OBJECT)
def test_an_execute_that_is_no_json_object_is_refused(raw: bytes) -> None:
    """The 400 says that an object is required."""
    assert refusal_of_execute(raw).message == "the body must be a JSON object"


@pytest.mark.parametrize("prompt", [b"\\ud800", b"a\\udc00b", b"\\ude00\\ud83d"])
def test_a_prompt_with_a_lone_surrogate_is_refused(prompt: bytes) -> None:
    """Such text cannot be tokenized, hashed or sent; a proper pair is one character."""
    assert refusal_of_execute(b'{"job_id": "a", "prompt": "' + prompt + b'"}').http_status == 400
    pair = ExecuteRequest.parse(b'{"job_id": "a", "prompt": "\\ud83d\\ude00"}')
    assert pair.prompt == "😀"


def test_the_worker_s_own_ceilings_bound_prompt_and_output() -> None:
    """`--max-prompt-chars` and `--max-tokens-out` replace the defaults."""
    ceilings = Ceilings(max_tokens_out=10, max_prompt_chars=3)
    ExecuteRequest.parse(b'{"job_id": "a", "prompt": "xyz", "max_tokens": 10}').within(ceilings)
    assert refusal_of_execute(b'{"job_id": "a", "prompt": "wxyz"}', ceilings).param == "prompt"
    too_many = refusal_of_execute(b'{"job_id": "a", "prompt": "x", "max_tokens": 11}', ceilings)
    assert (too_many.param, too_many.message) == ("max_tokens", "max_tokens is 11, at most 10 is allowed")


def test_a_prompt_is_counted_in_characters_not_bytes() -> None:
    """A Chinese prompt may have as many characters as an English one."""
    raw = json.dumps({"job_id": "a", "prompt": "漢" * 32768}, ensure_ascii=False).encode()
    assert len(ExecuteRequest.parse(raw).within(Ceilings(max_prompt_chars=32768)).prompt) == 32768


@pytest.mark.parametrize(
    ("timeout_ms", "seconds"), [(None, 300.0), (1, 0.001), (1500, 1.5), (300_000, 300.0), (300_001, 300.0)]
)
def test_a_job_s_own_deadline_is_cut_to_the_worker_s(timeout_ms: int | None, seconds: float) -> None:
    """A client may ask for less time than the worker's limit, never for more."""
    assert taken(timeout_ms=timeout_ms).timeout_within(Ceilings()) == seconds


def test_a_deadline_too_large_for_a_float_is_cut_like_any_other() -> None:
    """JSON numbers have no end; a huge one is the worker's ceiling, not a crash."""
    assert taken(timeout_ms=10**400).timeout_within(Ceilings()) == 300.0


def test_a_seed_that_is_left_out_is_drawn_anew_within_64_bits() -> None:
    """Two jobs without a seed do not share one; a given seed is used as it is."""
    drawn = {taken().seed_or_drawn() for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**64 for seed in drawn)
    assert taken(seed=0).seed_or_drawn() == 0
