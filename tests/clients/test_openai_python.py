"""The official Python package: everything that it can request, and every way to stop."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai.types.responses import ResponseCreatedEvent

from tests.clients.conftest import accepted, in_phase
from tests.helpers import ended_state, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

MODEL = "scripted"
SLOW = script(token_ms=20)
"""A prompt whose tokens are slow."""


def says(text: str) -> str:
    """A prompt that makes the model generate this text."""
    return script(text=text, token_ms=1)


def user(prompt: str) -> Any:
    """A conversation of one message."""
    return [{"role": "user", "content": prompt}]


def only_job(worker: RunningWorker) -> str:
    """The id of the one job that is live."""

    def look() -> str | None:
        live = [job["job_id"] for job in worker.client.get("/jobs?limit=0").json()["jobs"]]
        return live[0] if len(live) == 1 else None

    return wait_until(look, what="one live job")


def cancelled(worker: RunningWorker, job_id: str, reason: str) -> dict[str, Any]:
    """Wait until a job has been stopped for this reason; its receipt."""
    record = ended_state(worker, job_id)
    assert record["state"] == "cancelled", record
    receipt = cast("dict[str, Any]", record["receipt"])
    assert receipt["reason"] == reason
    assert receipt["kv_cells_after"] == 0
    return receipt


def read(stream: Iterable[Any], chunks: list[Any], *, at: int, do: Callable[[], object]) -> None:
    """Read a stream to its end, and do something after so many chunks."""
    for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == at:
            do()


# Answers.


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    """It is found by its name; another name is not found."""
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "worker-orcd")
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.param == "model"


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    """With its text, its finish reason and its usage."""
    prompt = says("Hello 👋")
    answer = client.chat.completions.create(model=MODEL, messages=user(prompt))
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello 👋"
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len("Hello 👋".encode())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_chat_streams(client: openai.OpenAI) -> None:
    """First the role, then text as it is generated, then the finish reason, then the requested usage."""
    stream = client.chat.completions.create(
        model=MODEL, messages=user(says("abc")), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "abc"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    """The default is sixteen tokens, as in OpenAI's API."""
    answer = client.completions.create(model=MODEL, prompt="go")
    assert (answer.choices[0].text.count(" "), answer.choices[0].finish_reason) == (16, "length")
    stream = client.completions.create(model=MODEL, prompt=says("abc"), stream=True, max_tokens=9)
    assert "".join(chunk.choices[0].text for chunk in stream) == "abc"


def test_choices_are_jobs_of_one_group_with_seeds_of_their_own(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """`n` of each prompt, distinguished by their index; the prompt is counted once."""
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt=["one", "three"], n=2, seed=7, max_tokens=3
    )
    answer = raw.parse()
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 4
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("one") + len("three")
    assert raw.headers["x-job-id"] == answer.id
    records = [served.record(job_id) for job_id in (answer.id, *(f"{answer.id}.{n}" for n in range(1, 4)))]
    assert {record["group"] for record in records} == {answer.id}
    assert [record["seed"] for record in records] == [7, 8, 9, 10]


def test_choices_stream_side_by_side(client: openai.OpenAI) -> None:
    """Each by its index."""
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=user("go"), n=3, seed=1, max_tokens=5, stream=True
    ):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert sorted(ends) == [0, 1, 2]
    assert len(set(texts.values())) == 3


def test_stop_and_seed_are_kept(client: openai.OpenAI) -> None:
    """As on `/execute`."""
    first = client.chat.completions.create(model=MODEL, messages=user(says("one two three")), stop=" thr")
    assert first.choices[0].message.content == "one two"
    texts = {
        client.completions.create(model=MODEL, prompt="go", seed=-3, max_tokens=5).choices[0].text
        for _ in range(2)
    }
    assert len(texts) == 1


def test_a_conversation_is_all_read(client: openai.OpenAI) -> None:
    """Every role with text, in parts or as one string."""
    messages: Any = [
        {"role": "developer", "content": "dev"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": says("hi")},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].message.content == "hi"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, ["dev", "a\nb", "ok", says("hi")])) + 3


def test_parsed_helpers_of_the_package_work(client: openai.OpenAI) -> None:
    """Its streaming helper accumulates the chunks."""
    with client.chat.completions.stream(model=MODEL, messages=user(says("abc"))) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "abc"


# Refusals.


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "messages",
        ),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"extra_body": {"logprobs": 0}}, 400, "logprobs"),
        ({"extra_body": {"stop_token_ids": [10**6]}}, 400, "stop_token_ids"),
        ({"extra_body": {"min_tokens": 4}, "max_tokens": 3}, 400, "min_tokens"),
        ({"extra_body": {"bad_words": ["x"]}}, 400, "bad_words"),
        ({"extra_body": {"include_stop_str_in_output": True}}, 400, "include_stop_str_in_output"),
        ({"extra_body": {"chat_template": "{{ x }}"}}, 400, "chat_template"),
        ({"frequency_penalty": 2.5}, 400, "frequency_penalty"),
        ({"logit_bias": {"1": 200}}, 400, "logit_bias"),
        ({"n": 17}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"temperature": 3}, 400, "temperature"),
        ({"max_completion_tokens": 0}, 400, "max_completion_tokens"),
        ({"extra_body": {"grammar": "root ::= 'a'"}}, 400, "grammar"),
        ({"extra_body": {"repeat_penalty": 2.5}}, 400, "repeat_penalty"),
        ({"extra_body": {"mirostat": 2}}, 400, "mirostat"),
        ({"stop": list("abcdefghijklmnopq")}, 400, "stop"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"extra_headers": {"X-Job-Id": "a b"}}, 400, "X-Job-Id"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_name(
    client: openai.OpenAI, fields: dict[str, Any], status: int, param: str
) -> None:
    """In the shape that the package parses, and without a retry."""
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": user("x"), **fields})
    assert caught.value.status_code == status
    assert caught.value.param == param
    assert caught.value.code == "INVALID_REQUEST"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id == caught.value.response.headers["x-correlation-id"]


def test_logprobs_of_chat_completions_whole_and_streamed(client: openai.OpenAI) -> None:
    """The package's own types parse them; the stream has the same ones."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": user(says("héllo")),
        "logprobs": True,
        "top_logprobs": 2,
        "stop": "zz",
        "temperature": 0,
    }
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.logprobs is not None
    whole = answer.logprobs.content or []
    assert b"".join(bytes(one.bytes or []) for one in whole).decode() == "héllo"
    assert all(len(one.top_logprobs) == 2 and one.logprob < 0 for one in whole)
    with client.chat.completions.create(**asked, stream=True) as stream:
        streamed = [
            one
            for chunk in stream
            for choice in chunk.choices
            if choice.logprobs
            for one in choice.logprobs.content or []
        ]
    assert streamed == whole


def test_logprobs_of_completions_and_responses(client: openai.OpenAI) -> None:
    """In each API's fields; there are none without a request for them."""
    completion = client.completions.create(model=MODEL, prompt=says("hello"), logprobs=2, max_tokens=9)
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list("hello")
    assert logprobs.text_offset == [0, 1, 2, 3, 4]
    assert len(logprobs.token_logprobs or []) == len(logprobs.top_logprobs or []) == 5
    assert client.completions.create(model=MODEL, prompt=says("hello")).choices[0].logprobs is None
    response = client.responses.create(
        model=MODEL, input=says("hello"), include=["message.output_text.logprobs"], top_logprobs=2
    )
    part = response.output[0].content[0]  # type: ignore[union-attr,index]
    assert [one.token for one in part.logprobs] == list("hello")  # type: ignore[union-attr]
    silent = client.responses.create(model=MODEL, input=says("hello"))
    assert silent.output[0].content[0].logprobs == []  # type: ignore[union-attr,index]


def test_token_ids_and_echo_as_evaluation_harnesses_use_them(client: openai.OpenAI) -> None:
    """A loglikelihood: the prompt comes back with the log probability of each of its tokens, whole and streamed."""
    text = says("hello")
    asked: dict[str, Any] = {"model": MODEL, "prompt": list(text.encode()), "echo": True, "logprobs": 1}
    choice = client.completions.create(**asked, max_tokens=0).choices[0]
    assert (choice.text, choice.finish_reason) == (text, "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list(text)
    scores = choice.logprobs.token_logprobs or []
    assert scores[0] is None
    assert all(score < 0 for score in scores[1:])
    assert choice.logprobs.text_offset == list(range(len(text)))
    one_more = client.completions.create(**{**asked, "prompt": text}, max_tokens=1).choices[0]
    assert one_more.text == text + "h"
    assert one_more.logprobs is not None
    assert (one_more.logprobs.token_logprobs or [])[:-1] == scores
    with client.completions.create(**asked, max_tokens=1, stream=True) as stream:
        chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == text + "h"
    streamed = [score for chunk in chunks if chunk.logprobs for score in chunk.logprobs.token_logprobs or []]
    assert streamed == one_more.logprobs.token_logprobs
    plain = client.completions.create(model=MODEL, prompt=text, echo=True, max_tokens=5).choices[0]
    assert (plain.text, plain.logprobs) == (text + "hello", None)


@pytest.mark.parametrize("length", [9_000, 40_000])
def test_a_prompt_that_does_not_fit_has_the_code_that_clients_look_for(
    client: openai.OpenAI, length: int
) -> None:
    """Agents shorten the conversation on this code, and on no other."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=user("x" * length))
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_what_changes_nothing_is_taken(client: openai.OpenAI) -> None:
    """Also unknown fields, as vLLM does."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=user(says("ok")),
        user="u",
        store=True,
        metadata={"a": "b"},
        logit_bias={},
        frequency_penalty=0,
        tools=[],
        response_format={"type": "text"},
        extra_body={
            "something_new": {"x": 1},
            "top_k": -1,
            "repetition_penalty": 1.1,
            "min_tokens": 0,
            "length_penalty": 1.0,
            "repeat_penalty": 1.0,
            "grammar": "",
            "skip_special_tokens": True,
        },
    )
    assert answer.choices[0].message.content == "ok"


def test_a_full_queue_is_tried_again_by_the_package_itself(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """After a 429 with Retry-After the package retries, and gets the answer when there is room."""
    others = [served.execute(fresh_id("full"), SLOW, max_tokens=50).started() for _ in range(4)]
    others += [served.execute(fresh_id("full"), SLOW, max_tokens=50) for _ in range(4)]
    for other in others:
        other.wait(lambda s: s.status is not None, what="an answer")
        assert other.status == 200
    with pytest.raises(openai.RateLimitError) as caught:
        client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=user("x"))
    assert caught.value.code == "QUEUE_FULL"
    answer = client.with_options(max_retries=5).chat.completions.create(
        model=MODEL, messages=user(says("ok"))
    )
    assert answer.choices[0].message.content == "ok"
    for other in others:
        other.finished()


# Stopping.


def test_breaking_out_of_the_loop_and_closing_stops_the_job(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """The usual way."""
    with client.chat.completions.create(model=MODEL, messages=user(SLOW), stream=True) as stream:
        job_id = stream.response.headers["x-job-id"]
        for place, _ in enumerate(stream):
            if place == 3:
                break
    cancelled(served, job_id, "disconnect")


def test_a_cancelled_task_stops_the_job(served: RunningWorker) -> None:
    """The asynchronous client, cancelled while it waits for a complete answer."""

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            task = asyncio.create_task(
                client.chat.completions.create(
                    model=MODEL, messages=user(SLOW), extra_headers={"X-Job-Id": "task-1"}
                )
            )
            await asyncio.to_thread(in_phase, served, "task-1", "decode")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())
    cancelled(served, "task-1", "disconnect")


def test_a_timeout_of_the_client_stops_the_job_and_its_retries(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """The package retries after a timeout; each attempt is stopped when the package gives up."""
    before = accepted(served)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=openai.Timeout(20, read=1.5), max_retries=1).chat.completions.create(
            model=MODEL, messages=user(SLOW)
        )
    wait_until(lambda: accepted(served) == before + 2, what="both to end")


def test_a_stream_that_is_cancelled_from_elsewhere_ends_with_one_error(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """Never with `[DONE]`, which would look like success; it has the usage so far."""
    stream = client.chat.completions.create(
        model=MODEL, messages=user(SLOW), stream=True, stream_options={"include_usage": True}
    )
    job_id = stream.response.headers["x-job-id"]
    chunks: list[Any] = []
    with pytest.raises(openai.APIError) as caught:
        read(stream, chunks, at=4, do=lambda: served.cancel(job_id))
    assert caught.value.code == "CANCELLED"
    body = cast("dict[str, Any]", caught.value.body)
    assert body["usage"]["completion_tokens"] >= 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == body["usage"]["completion_tokens"]
    raw = served.client.post(
        "/v1/chat/completions", json={"messages": user(SLOW), "stream": True, "timeout_ms": 200}
    )
    assert "[DONE]" not in raw.text
    assert raw.text.count('"error"') == 1


def test_an_answer_that_is_cancelled_from_elsewhere_is_an_error_that_is_not_tried_again(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """By the id that the client chose, or that it found in the list of jobs."""
    before = accepted(served)
    threading.Timer(0.4, lambda: served.cancel("mine-1")).start()
    with pytest.raises(openai.APIStatusError) as caught:
        client.with_options(max_retries=3).chat.completions.create(
            model=MODEL, messages=user(SLOW), extra_headers={"X-Job-Id": "mine-1"}
        )
    assert (caught.value.status_code, caught.value.code) == (400, "CANCELLED")
    assert caught.value.response.headers["x-job-id"] == "mine-1"
    assert accepted(served) == before + 1
    cancelled(served, "mine-1", "client")


def test_choices_are_stopped_together(client: openai.OpenAI, served: RunningWorker) -> None:
    """By their group; one of them alone ends the request, and so the others; the first has the request's name."""
    for name, named in (
        ("g-1", {"group": "g-1"}),
        ("g-2", {"job_id": "g-2"}),
        ("g-3", {"job_id": "g-3.1"}),
    ):
        stream = client.chat.completions.create(
            model=MODEL, messages=user(SLOW), n=3, stream=True, extra_headers={"X-Job-Id": name}
        )
        with pytest.raises(openai.APIError):
            read(stream, [], at=5, do=partial(served.client.post, "/cancel", json=named))
        assert {ended_state(served, one)["state"] for one in (name, f"{name}.1", f"{name}.2")} == {
            "cancelled"
        }


def test_a_whole_answer_that_was_stopped_says_what_all_its_choices_used(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """Not only of the choice that was stopped first."""

    def stop() -> None:
        wait_until(lambda: served.record("both.1").get("tokens_out", 0) > 3, what="both choices")
        served.cancel("both.1")

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(openai.APIStatusError) as caught:
        client.with_options(max_retries=0).completions.create(
            model=MODEL, prompt=SLOW, n=2, max_tokens=500, extra_headers={"X-Job-Id": "both"}
        )
    stopping.join()
    used = cast(dict[str, Any], caught.value.response.json()["error"]["usage"])
    out = [ended_state(served, name)["tokens_out"] for name in ("both", "both.1")]
    assert used["completion_tokens"] > max(cast(list[int], out))
    assert used["prompt_tokens"] == len(SLOW)


def test_choices_are_stopped_before_they_are_asked_for(client: openai.OpenAI, served: RunningWorker) -> None:
    """A cancel with the request's id arrives before the request."""
    served.cancel("early-1")
    with pytest.raises(openai.APIStatusError) as caught:
        client.with_options(max_retries=0).chat.completions.create(
            model=MODEL, messages=user(SLOW), n=2, extra_headers={"X-Job-Id": "early-1"}
        )
    assert caught.value.code == "CANCELLED"
    assert {ended_state(served, name)["state"] for name in ("early-1", "early-1.1")} == {"cancelled"}


def test_a_killed_engine_is_not_noticed(client: openai.OpenAI, served: RunningWorker) -> None:
    """The stream continues where it was, without a lost or repeated token."""
    words: list[str] = []
    for chunk in client.completions.create(
        model=MODEL, prompt=SLOW, max_tokens=30, stream=True, temperature=0
    ):
        words.append(chunk.choices[0].text)
        if len(words) == 10:
            served.signal_engine(signal.SIGKILL)
    numbers = [int(word[1:]) for word in "".join(words).split()]
    assert len(numbers) == 30
    assert all(b - a == 1 for a, b in pairwise(numbers))


# Responses.


def test_a_response_is_answered_and_remembered(client: openai.OpenAI) -> None:
    """With instructions and a conversation."""
    answer = client.responses.create(
        model=MODEL,
        instructions="Be kind.",
        input=[{"role": "user", "content": "x"}, {"role": "user", "content": says("hello")}],
        metadata={"a": "b"},
    )
    assert (answer.status, answer.output_text, answer.metadata) == ("completed", "hello", {"a": "b"})
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    assert client.responses.retrieve(answer.id) == answer


def test_a_response_that_runs_out_of_tokens_is_incomplete(client: openai.OpenAI) -> None:
    """With the reason."""
    answer = client.responses.create(model=MODEL, input="go", max_output_tokens=4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    # The first of the four bytes of a character: no text yet.
    *_, last = client.responses.create(model=MODEL, input=says("👋"), max_output_tokens=1, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.output_text == ""
    assert list(client.responses.retrieve(last.response.id, stream=True))[-1] == last


def test_a_response_that_is_not_to_be_stored_cannot_be_had_again(client: openai.OpenAI) -> None:
    """The response object shows it; a response in the background has to be stored."""
    answer = client.responses.create(model=MODEL, input=says("ok"), store=False)
    assert (answer.output_text, answer.to_dict()["store"]) == ("ok", False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", store=False, background=True)
    assert caught.value.param == "store"


@pytest.mark.parametrize("live", [True, False], ids=["live", "ended"])
def test_the_text_of_a_response_that_is_not_stored_is_handed_out_to_nobody(
    client: openai.OpenAI, served: RunningWorker, live: bool
) -> None:
    """Neither by its cancel nor as the events of its job, to whoever knows its id."""
    name = fresh_id("unstored")
    input_ = SLOW if live else says("secret")
    with client.responses.create(
        model=MODEL, input=input_, store=False, stream=True, extra_headers={"X-Job-Id": name}
    ) as stream:
        for event in stream:
            if live and event.type == "response.output_text.delta":
                break
        assert served.client.get(f"/jobs/{name}/events").status_code == 404
        cancel = served.client.post(f"/v1/responses/{name}/cancel")
        if live:
            assert (cancel.status_code, cancel.json()["status"]) == (200, "cancelled")
            assert cancel.json()["output"] == []
        else:
            assert cancel.status_code == 404
    assert served.client.get(f"/jobs/{name}/events").status_code == 404
    assert served.client.post(f"/v1/responses/{name}/cancel").status_code == 404
    assert served.record(name)["job_id"] == name, "its record is kept"


def test_a_response_streams_and_is_picked_up_after_any_event(client: openai.OpenAI) -> None:
    """The same events with the same numbers, from any position."""
    events = list(client.responses.create(model=MODEL, input=says("abcd"), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "abcd"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "abcd"
    assert list(client.responses.retrieve(last.response.id, stream=True)) == events
    for after in range(len(events) - 1):
        again = list(client.responses.retrieve(last.response.id, stream=True, starting_after=after))
        assert again == events[after + 1 :]


def test_events_of_a_response_never_continue_those_of_another_with_its_id(client: openai.OpenAI) -> None:
    """An id that a client chose may be used again: a number of the one use is none of the other."""
    name = fresh_id("reused")

    def answered(text: str) -> list[Any]:
        stream = client.responses.create(
            model=MODEL, input=says(text), stream=True, extra_headers={"X-Job-Id": name}
        )
        return list(stream)

    first, second = answered("abcd"), answered("efgh")
    numbers = [event.sequence_number for event in second]
    assert numbers == list(range(numbers[0], numbers[0] + len(second)))
    assert numbers[-1] < 2**53, "a whole number also for JavaScript"
    again = client.responses.retrieve(name, stream=True, starting_after=numbers[3])
    assert list(again) == second[4:]
    for seen in (*first, 0, 6, 1000):
        number = seen if isinstance(seen, int) else seen.sequence_number
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name, stream=True, starting_after=number)


def test_a_response_is_continued_listed_and_deleted(client: openai.OpenAI) -> None:
    """As the package does it, page by page; what cannot be continued has the code that agents look for."""
    first = client.responses.create(model=MODEL, input=says("one"))
    second = client.responses.create(model=MODEL, input=says("two"), previous_response_id=first.id)
    assert second.previous_response_id == first.id
    items: list[Any] = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [(item.role, item.content[0].text) for item in items[1:]] == [
        ("assistant", "one"),
        ("user", items[2].content[0].text),
    ]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_response_in_the_background_is_cancelled_once_and_for_all(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """Idempotent: the second cancel returns the final object; it never turns completed."""
    begun = client.responses.create(model=MODEL, input=SLOW, background=True)
    assert begun.status in ("queued", "in_progress")
    wait_until(lambda: client.responses.retrieve(begun.id).status == "in_progress", what="its start")
    first = client.responses.cancel(begun.id)
    assert first.status == "cancelled"
    assert first.usage is not None
    assert client.responses.cancel(begun.id) == first
    assert client.responses.retrieve(begun.id) == first
    cancelled(served, begun.id, "client")
    *_, last = client.responses.retrieve(begun.id, stream=True)
    assert (last.type, getattr(last, "code", None)) == ("error", "CANCELLED")


def test_a_model_is_known_by_its_name_while_it_is_loaded() -> None:
    """The quickstart asks for the first one; what waits for it is known by the name that it was asked by."""
    with running_worker(wait=False, env={"WORKER_ORCD_SCRIPTED_LOAD_SEC": "2"}) as loading:
        client = openai.OpenAI(base_url=f"{loading.url}/v1", api_key="none", max_retries=9)
        assert [one.id for one in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nonsense")
        events = list(client.responses.create(model=MODEL, input=says("ok"), stream=True))
        assert isinstance(events[0], ResponseCreatedEvent)
        assert events[0].response.model == MODEL
        assert list(client.responses.retrieve(events[0].response.id, stream=True)) == events
        assert [one.id for one in client.models.list()] == [MODEL]
        client.close()


def test_aliases_are_what_clients_call_the_model() -> None:
    """Listed in their order; the file's name is taken, too, and the first is what answers say to who named none."""
    with running_worker(model_alias="mine,org/mine:1") as named:
        client = openai.OpenAI(base_url=f"{named.url}/v1", api_key="none")
        assert [one.id for one in client.models.list()] == ["mine", "org/mine:1"]
        assert client.models.retrieve("org/mine:1").id == "org/mine:1"
        for name in ("mine", "org/mine:1", MODEL):
            answer = client.completions.create(model=name, prompt=says("ok"))
            assert (answer.model, answer.choices[0].text) == (name, "ok")
        raw = named.client.post("/v1/completions", json={"prompt": says("ok")}).json()
        assert raw["model"] == "mine"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4o")
        client.close()


def test_a_response_in_the_background_continues_without_readers(client: openai.OpenAI) -> None:
    """Its stream is left and picked up again."""
    seen = []
    with client.responses.create(
        model=MODEL, input=script(text="abcdefgh", token_ms=30), background=True, stream=True
    ) as stream:
        for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    begun = seen[0]
    assert begun.type == "response.created"
    rest = list(
        client.responses.retrieve(begun.response.id, stream=True, starting_after=seen[-1].sequence_number)
    )
    deltas = [e.delta for e in [*seen, *rest] if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "abcdefgh"
    assert rest[-1].type == "response.completed"


def test_who_waits_for_a_response_gets_its_end_from_any_position(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """Also after a number that it never comes to; a request for an ended one after its end gets no further event."""
    script_ = script(text="abcdefgh", token_ms=30)
    begun = client.responses.create(model=MODEL, input=script_, background=True)
    (only,) = client.responses.retrieve(begun.id, stream=True, starting_after=1000)
    assert only.type == "response.completed"
    assert not list(client.responses.retrieve(begun.id, stream=True, starting_after=only.sequence_number))
    begun = client.responses.create(model=MODEL, input=SLOW, background=True)
    stopping = threading.Timer(0.2, served.cancel, [begun.id])
    stopping.start()
    (only,) = client.responses.retrieve(begun.id, stream=True, starting_after=1000)
    stopping.join()
    assert (only.type, getattr(only, "code", None)) == ("error", "CANCELLED")


def test_leaving_a_response_that_is_not_in_the_background_stops_it(
    client: openai.OpenAI, served: RunningWorker
) -> None:
    """Like for every other stream."""
    with client.responses.create(model=MODEL, input=SLOW, stream=True) as stream:
        next(iter(stream))
        job_id = only_job(served)
    cancelled(served, job_id, "disconnect")


def test_a_finished_response_stays_finished(client: openai.OpenAI) -> None:
    """A late cancel changes nothing and is no error."""
    done = client.responses.create(model=MODEL, input=says("ok"))
    assert client.responses.cancel(done.id) == done


def test_unknown_responses_are_not_found(client: openai.OpenAI, served: RunningWorker) -> None:
    """Nor is a job that is not a response."""
    plain = served.execute(fresh_id("plain"), max_tokens=1).finished()
    for name in ("resp_nobody", plain.job_id):
        for ask in (client.responses.retrieve, client.responses.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(name)
            assert caught.value.code == "JOB_NOT_FOUND"


# Keys.


def test_keys_are_the_packages_own(tmp_path: Path) -> None:
    """A wrong one is an authentication error, and a foreign response looks like an unknown one."""
    keys = tmp_path / "keys.txt"
    keys.write_text("anna-0123456789abcdef\nberta-0123456789abcdef\n")
    with running_worker(api_key_file=str(keys)) as guarded:
        anna, berta, nobody = (
            openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=f"{name}-0123456789abcdef")
            for name in ("anna", "berta", "nobody")
        )
        with pytest.raises(openai.AuthenticationError) as caught:
            nobody.models.list()
        assert caught.value.code == "UNAUTHORIZED"
        begun = anna.responses.create(model=MODEL, input=SLOW, background=True)
        for ask in (berta.responses.retrieve, berta.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(begun.id)
        assert anna.responses.cancel(begun.id).status == "cancelled"
        for made in (anna, berta, nobody):
            made.close()
