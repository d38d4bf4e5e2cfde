"""`POST /execute`: streams, refusals, timeouts, and engines that fail (M0-W-1300..1312)."""

import json
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers import fresh_id, queued, raw_body, raw_exchange, script
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until

CONTEXT = 8192
"""Tokens that a job on the scripted engine can have; a prompt there has a token for each byte."""
MEBIBYTE = 1 << 20


def texts(stream: Stream) -> list[str]:
    """The text of each token event."""
    return [event.data["t"] for event in stream.tokens]


def test_the_stream_is_started_then_tokens_then_end(worker: RunningWorker) -> None:
    """The events have exactly the contract's fields; then the connection is closed."""
    stream = worker.execute(fresh_id(), max_tokens=7, seed=42).finished()
    stream.assert_whole()
    assert [event.event for event in stream.events] == ["started", *["token"] * 7, "end"]
    started, end = stream.events[0].data, stream.events[-1].data
    assert list(started) == ["job_id", "model", "started_at", "seed"]
    assert (started["job_id"], started["model"], started["seed"]) == (stream.job_id, "scripted", 42)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", started["started_at"])
    assert all(list(event.data) == ["t", "i"] for event in stream.tokens)
    assert list(end) == ["tokens_out", "decode_time_ms", "stop_reason"]
    assert (end["tokens_out"], end["stop_reason"]) == (7, "length")
    assert isinstance(end["decode_time_ms"], int)
    assert end["decode_time_ms"] >= 6  # Six times 2 ms lie between the seven tokens; clocks may round.


def test_the_answer_is_an_event_stream_that_nobody_may_keep(worker: RunningWorker) -> None:
    """Content type, no caching, the correlation id, and the job's id."""
    stream = Stream(
        worker,
        {"job_id": fresh_id(), "prompt": "x", "max_tokens": 1},
        {"X-Request-Id": "the-clients-own"},
    ).finished()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-store"
    assert stream.headers["x-correlation-id"] == "the-clients-own"
    assert stream.headers["x-job-id"] == stream.job_id


def test_the_wire_is_plain_server_sent_events(worker: RunningWorker) -> None:
    """Each event has its `event:`, one `data:` line and an `id:`, and ends with an empty line."""
    job_id = fresh_id()
    answer = worker.client.post(
        "/execute", json={"job_id": job_id, "prompt": script(text="a\nb\r\u2028"), "max_tokens": 9}
    )
    blocks = answer.text.removesuffix("\n\n").split("\n\n")
    incarnation = worker.record(job_id)["incarnation"]
    for number, block in enumerate(blocks):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(fields) == {"event", "data", "id"}
        assert fields["id"] == f"{incarnation}.{number}"
        json.loads(fields["data"])


def test_the_same_seed_brings_the_same_tokens_and_another_seed_others(worker: RunningWorker) -> None:
    """Also the largest seed."""
    runs = [
        worker.execute(fresh_id(), max_tokens=12, seed=seed).finished() for seed in (2**64 - 1, 2**64 - 1, 7)
    ]
    assert runs[0].events[0].data["seed"] == 2**64 - 1
    assert texts(runs[0]) == texts(runs[1]) != texts(runs[2])


def test_a_drawn_seed_is_reported_and_brings_the_tokens_back(worker: RunningWorker) -> None:
    """Without a seed each job draws its own."""
    drawn, other = (worker.execute(fresh_id(), max_tokens=12).finished() for _ in range(2))
    assert drawn.events[0].data["seed"] != other.events[0].data["seed"]
    again = worker.execute(fresh_id(), max_tokens=12, seed=drawn.events[0].data["seed"]).finished()
    assert texts(again) == texts(drawn)


@pytest.mark.parametrize(
    ("said", "stop", "shown", "reason"),
    [
        ("one two three", ["two"], "one ", "stop_sequence"),
        ("one two three", ["three", "ne t"], "o", "stop_sequence"),
        ("one two", ["never"], "one two", "stop"),
        ("ends like <en", ["<end>"], "ends like <en", "stop"),
        ("\U0001f600 and \U0001f680 gone", ["\U0001f680"], "\U0001f600 and ", "stop_sequence"),
    ],
)
def test_stop_sequences_end_the_text_before_them(
    worker: RunningWorker, said: str, stop: list[str], shown: str, reason: str
) -> None:
    """No part of a stop sequence is ever sent; text that only could have become one is sent at the end."""
    stream = worker.execute(fresh_id(), script(text=said, token_ms=1), stop=stop).finished()
    stream.assert_whole()
    assert stream.text == shown
    assert stream.events[-1].data["stop_reason"] == reason


@pytest.mark.parametrize(
    "said",
    [
        "Hi \U0001f44b\U0001f3fd!",
        "\u6625\u7720\u4e0d\u89ba\u6681",
        "na\u00efve \u20ac",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    ],
)
def test_characters_split_over_tokens_are_shown_whole(worker: RunningWorker, said: str) -> None:
    """With one byte per token, `t` is empty until the character is complete, and no byte is lost."""
    stream = worker.execute(fresh_id(), script(text=said, token_ms=1)).finished()
    stream.assert_whole()
    assert stream.text == said
    assert set(texts(stream)) <= {"", *said}
    assert len(stream.tokens) == len(said.encode()) == stream.events[-1].data["tokens_out"]
    assert stream.events[-1].data["stop_reason"] == "stop"


def test_half_a_character_at_the_end_is_never_shown(worker: RunningWorker) -> None:
    """If `max_tokens` ends the job in the middle of an emoji, nothing is sent instead of a replacement character."""
    stream = worker.execute(fresh_id(), script(text="ab\U0001f680"), max_tokens=4).finished()
    assert texts(stream) == ["a", "b", "", ""]
    assert stream.events[-1].data["stop_reason"] == "length"


def test_the_end_token_is_not_a_token_unless_it_is_ignored(worker: RunningWorker) -> None:
    """It does not count; with `ignore_eos` the job continues to `max_tokens`."""
    ended = worker.execute(fresh_id(), script(text="ab"), max_tokens=5).finished()
    assert ended.events[-1].data["tokens_out"] == 2
    ignored = worker.execute(fresh_id(), script(text="ab"), max_tokens=5, ignore_eos=True).finished()
    ignored.assert_whole()
    assert ignored.events[-1].data["tokens_out"] == 5
    assert ignored.events[-1].data["stop_reason"] == "length"


def test_at_the_end_event_everything_is_free(worker: RunningWorker) -> None:
    """Cells are free before `end`, too (G4)."""
    for _ in range(10):
        stream = worker.execute(fresh_id(), script(400), max_tokens=2)
        stream.wait(lambda s: s.terminal is not None, what="the end")
        health = worker.health()
        assert (health["kv_cells_used"], health["jobs_running"]) == (0, 0)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_the_body_is_json_whatever_its_content_type(worker: RunningWorker, content_type: str | None) -> None:
    """The contract's curl command works as written."""
    body = json.dumps({"job_id": fresh_id(), "prompt": "x", "max_tokens": 2}).encode()
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = worker.client.post("/execute", content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.text.count("event: token") == 2


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"job_id": ""}, "job_id", "at least 1 character"),
    ({"job_id": "x" * 257}, "job_id", "at most 256"),
    ({"job_id": "a b"}, "job_id", "may only have"),
    ({"job_id": "../x"}, "job_id", "may only have"),
    ({"job_id": 5}, "job_id", "valid string"),
    ({"prompt": ""}, "prompt", "at least 1 character"),
    ({"prompt": None}, "prompt", "valid string"),
    ({"prompt": ["x"]}, "prompt", "valid string"),
    ({"prompt": "x" * (CONTEXT + 1)}, "prompt", f"context length is {CONTEXT} tokens"),
    ({"prompt": "x" * 100_000}, "prompt", "your prompt has 100000 tokens"),
    ({"prompt": "x" * CONTEXT}, "prompt", "one must be left for output"),
    ({"prompt": "x" * 8000, "max_tokens": 193}, "max_tokens", "need 8193"),
    ({"template": "chatml"}, "template", "'auto' or 'none'"),
    ({"ignore_eos": "yes"}, "ignore_eos", "valid boolean"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": CONTEXT + 1}, "max_tokens", f"a job has {CONTEXT}"),
    ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
    ({"max_tokens": "5"}, "max_tokens", "valid integer"),
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"temperature": float("nan")}, "temperature", "finite"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"top_p": -1}, "top_p", "greater than or equal to 0"),
    ({"top_k": -1}, "top_k", "greater than or equal to 0"),
    ({"top_k": 50_001}, "top_k", "vocabulary has 50000"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"repetition_penalty": 2.5}, "repetition_penalty", "less than or equal to 2"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"stop": [""]}, "stop", "at least 1 character"),
    ({"stop": "text"}, "stop", "valid array"),
    ({"stop": ["x" * 33]}, "stop", "33 tokens, at most 32"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**64}, "seed", "less than or equal to"),
    ({"timeout_ms": 0}, "timeout_ms", "greater than or equal to 1"),
    ({"on_disconnect": "explode"}, "on_disconnect", "'cancel' or 'continue'"),
    ({"group": "g h"}, "group", "may only have"),
    ({"max_token": 5}, "max_token", "unknown field 'max_token'"),
]


def _assert_refused(answer: Any, param: str | None, message: str) -> None:
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-correlation-id"]
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert error["code"] == "INVALID_REQUEST"
    assert error["retriable"] is False
    assert message in error["message"]
    assert error.get("param") == param
    assert set(error) <= {"code", "message", "retriable", "param"}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    REFUSALS,
    ids=[f"{param}-{message[:24]}" for _, param, message in REFUSALS],
)
def test_a_bad_field_is_refused_by_its_name(
    worker: RunningWorker, fields: dict[str, Any], param: str, message: str
) -> None:
    """400 with code, message and `param`, never 422; no job runs."""
    body = {"job_id": fresh_id("refused"), "prompt": "x", **fields}
    _assert_refused(worker.client.post("/execute", content=json.dumps(body).encode()), param, message)
    assert worker.health()["jobs_running"] == 0


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "not valid JSON"),
        (b'{"job_id": "a", ', None, "not valid JSON"),
        (b'{"job_id": "a", "prompt": "\xff"}', None, "not valid JSON"),
        (b'{"job_id": "a", "prompt": "\\ud800"}', None, "not valid JSON"),
        (b"[" * 10_000, None, "not valid JSON"),
        (b"[]", None, "must be a JSON object"),
        (b"7", None, "must be a JSON object"),
        (b'{"prompt": "x"}', "job_id", "job_id is required"),
        (b'{"job_id": "a"}', "prompt", "prompt is required"),
    ],
)
def test_a_body_that_is_no_job_is_refused(
    worker: RunningWorker, body: bytes, param: str | None, message: str
) -> None:
    """400 in the usual shape, also for a body that is not JSON."""
    _assert_refused(worker.client.post("/execute", content=body), param, message)


def test_after_a_prompt_that_cannot_fit_the_next_job_works(worker: RunningWorker) -> None:
    """A refusal leaves nothing behind: the same id can be used at once."""
    job_id = fresh_id()
    refused = worker.execute(job_id, "x" * (CONTEXT + 1)).finished()
    assert refused.status == 400
    assert worker.execute(job_id, max_tokens=2).finished().events[-1].event == "end"


def test_max_tokens_left_out_is_what_fits(worker: RunningWorker) -> None:
    """It is the rest of the context after the prompt, whether short or long."""
    prompt = script(text="x")
    short = worker.execute(fresh_id(), prompt).finished()
    assert worker.record(short.job_id)["max_tokens"] == CONTEXT - len(prompt)
    long = worker.execute(fresh_id(), script(CONTEXT - 5, row_ms=0.01, token_ms=1)).finished()
    assert worker.record(long.job_id)["max_tokens"] == 5
    assert long.events[-1].data == {**long.events[-1].data, "tokens_out": 5, "stop_reason": "length"}


def test_a_live_id_is_in_use_and_its_job_is_not_disturbed(worker: RunningWorker) -> None:
    """409 with the same message while the job runs and while it is queued; afterwards the id is free."""
    first = worker.execute(fresh_id(), script(token_ms=3), max_tokens=50).tokens_seen(1)
    second = worker.execute(first.job_id).finished()
    assert second.status == 409
    assert second.refusal == {
        "code": "JOB_ID_IN_USE",
        "message": "a live job has this job_id",
        "retriable": False,
        "param": "job_id",
    }
    first.finished().assert_whole()
    assert len(first.tokens) == 50
    assert worker.execute(first.job_id, max_tokens=1).finished().status == 200


def _chunks() -> Iterator[bytes]:
    for _ in range(3):
        yield b" " * (MEBIBYTE // 2)


@pytest.mark.parametrize("path", ["/execute", "/cancel"])
@pytest.mark.parametrize("how", ["declared", "chunked"])
def test_a_body_over_a_mebibyte_is_refused(worker: RunningWorker, path: str, how: str) -> None:
    """413, by its declared length or by the bytes received."""
    content = b" " * (MEBIBYTE + 1) if how == "declared" else _chunks()
    answer = worker.client.post(path, content=content)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert answer.json()["error"]["retriable"] is False
    assert answer.headers["x-correlation-id"]


def test_a_declared_giant_is_refused_before_it_is_sent(worker: RunningWorker) -> None:
    """A declared gigabyte is refused before the body arrives."""
    head = b"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\n\r\n"
    status, body = raw_body(raw_exchange(worker, head))
    assert status == 413
    assert json.loads(body)["error"]["code"] == "INVALID_REQUEST"


def test_a_full_queue_says_so_and_when_to_come_back(narrow: RunningWorker) -> None:
    """429 QUEUE_FULL, retriable, with Retry-After; the queue is untouched."""
    running = narrow.execute(fresh_id("running"), script(token_ms=5)).started()
    waiting = [queued(narrow, narrow.execute(fresh_id("waiting"), max_tokens=1)) for _ in range(2)]
    refused = narrow.execute(fresh_id("refused")).finished()
    assert refused.status == 429
    assert refused.refusal is not None
    assert (refused.refusal["code"], refused.refusal["retriable"]) == ("QUEUE_FULL", True)
    assert int(refused.headers["retry-after"]) >= 1
    assert narrow.client.get(f"/jobs/{refused.job_id}").status_code == 404
    narrow.cancel(running.job_id)
    for stream in waiting:
        assert stream.finished().events[-1].event == "end"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/jobs/x/nowhere", 404),
        ("GET", "/execute", 405),
        ("GET", "/cancel", 405),
        ("DELETE", "/jobs/x", 405),
        ("POST", "/health", 405),
    ],
)
def test_wrong_paths_and_methods_are_refused_in_the_one_shape(
    worker: RunningWorker, method: str, path: str, status: int
) -> None:
    """404 and 405 are INVALID_REQUEST; 405 lists the allowed methods in `Allow`."""
    answer = worker.client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert ("allow" in answer.headers) == (status == 405)
    assert answer.headers["x-correlation-id"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # how TLS says hello
        b"EHLO worker\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon here\r\n\r\n",
        b"POST /cancel HTTP/1.1\r\nHost: x\r\nContent-Length: minus one\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http_get_the_one_shape_too(worker: RunningWorker, garbage: bytes) -> None:
    """400 INVALID_REQUEST, and the connection is closed; the worker continues."""
    answer = raw_exchange(worker, garbage)
    status, body = raw_body(answer)
    assert status == 400
    assert json.loads(body)["error"]["code"] == "INVALID_REQUEST"
    assert b"x-correlation-id: " in answer
    assert worker.client.get("/health").status_code == 200


def test_a_client_that_sends_its_body_slowly_is_served(worker: RunningWorker) -> None:
    """Half a body, a request for health, the other half."""
    body = json.dumps({"job_id": fresh_id(), "prompt": "x", "max_tokens": 1}).encode()
    head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10.0) as connection:
        connection.sendall(head.encode() + body[:10])
        assert worker.health()["status"] == "healthy"
        connection.sendall(body[10:])
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert b"event: end" in received


def test_a_running_job_is_stopped_at_its_deadline(worker: RunningWorker) -> None:
    """`error` INFERENCE_TIMEOUT, retriable, as soon as its own `timeout_ms` has passed; everything is freed."""
    stream = worker.execute(fresh_id(), script(token_ms=5), timeout_ms=150).finished(within_sec=5.0)
    stream.assert_whole()
    error = stream.events[-1].data
    assert (error["code"], error["retriable"]) == ("INFERENCE_TIMEOUT", True)
    assert error["phase"] == "decode"
    assert error["tokens_out"] == len(stream.tokens) > 0
    assert "150 ms" in error["message"]
    record = worker.record(stream.job_id)
    assert record["state"] == "timed_out"
    assert 150 <= record["ended_ms"] <= 400
    assert worker.health()["kv_cells_used"] == 0
    assert worker.narrated("timeout", job_id=stream.job_id)["timeout_ms"] == 150


def test_queue_time_counts_towards_the_deadline(narrow: RunningWorker) -> None:
    """A job that waits too long ends with just its error, phase `queued`."""
    running = narrow.execute(fresh_id(), script(token_ms=5)).started()
    waiting = narrow.execute(fresh_id(), timeout_ms=120).finished(within_sec=5.0)
    assert [event.event for event in waiting.events] == ["error"]
    error = waiting.events[0].data
    assert (error["code"], error["retriable"], error["phase"]) == ("INFERENCE_TIMEOUT", True, "queued")
    assert not running.terminal
    narrow.cancel(running.job_id)
    running.finished()


def test_a_deadline_above_the_workers_is_cut_to_it(worker: RunningWorker) -> None:
    """The worker's limit of 300 s is the maximum."""
    stream = worker.execute(fresh_id(), max_tokens=1, timeout_ms=10_000_000).finished()
    assert worker.record(stream.job_id)["timeout_ms"] == 300_000


def test_a_job_that_the_engine_fails_on_ends_with_internal_and_is_freed(worker: RunningWorker) -> None:
    """The stream keeps its tokens and ends with one `error`; the engine continues with the next job."""
    stream = worker.execute(fresh_id(), script(fail_at=3)).finished()
    stream.assert_whole()
    assert len(stream.tokens) == 3
    error = stream.events[-1].data
    assert (error["code"], error["retriable"]) == ("INTERNAL", True)
    assert worker.record(stream.job_id)["state"] == "failed"
    health = worker.health()
    assert (health["status"], health["kv_cells_used"], health["engine_restarts"]) == ("healthy", 0, 0)
    assert worker.execute(fresh_id(), max_tokens=2).finished().events[-1].event == "end"


def test_when_the_engine_is_killed_everything_continues_where_it_was(battered: RunningWorker) -> None:
    """No token is lost or sent twice, streams stay open and are those of undisturbed runs (G7, G11)."""
    restarts = battered.health()["engine_restarts"]
    undisturbed = battered.execute(
        fresh_id("calm"), script(20, token_ms=4), max_tokens=150, seed=5
    ).finished()
    streams = [
        battered.execute(fresh_id("carried"), script(20, token_ms=4), max_tokens=150, seed=5)
        for _ in range(2)
    ]
    for stream in streams:
        stream.tokens_seen(20)
    waiting = queued(battered, battered.execute(fresh_id("waiting"), max_tokens=4))
    battered.signal_engine(signal.SIGKILL)
    wait_until(lambda: battered.health()["status"] == "unhealthy", what="the loss to be noticed")
    assert battered.client.get("/readyz").status_code == 503
    assert battered.health()["kv_cells_used"] == 0
    for stream in streams:
        stream.finished(within_sec=20.0).assert_whole()
        assert [event.data for event in stream.tokens] == [event.data for event in undisturbed.tokens]
        assert stream.events[-1].event == "end"
        assert battered.record(stream.job_id)["requeues"] == 1
    waiting.finished(within_sec=15.0).assert_whole()
    assert [event.event for event in waiting.events] == ["started", *["token"] * 4, "end"]
    assert battered.health()["engine_restarts"] == restarts + 1
    lost = [event for event in battered.narration() if event["action"] == "engine_lost"][-1]
    assert lost["jobs_running"] == 2
    assert battered.narrated("engine_restarted", restarts=restarts + 1)["engine_pid"] == battered.engine_pid


def test_a_job_that_kills_the_engine_again_and_again_is_failed_and_the_others_live(
    battered: RunningWorker,
) -> None:
    """After the third death it ends with ENGINE_LOST. A neighbour and a waiting job complete."""
    restarts = battered.health()["engine_restarts"]
    poison = battered.execute(fresh_id("poison"), script(token_ms=5, die_at=20))
    neighbour = battered.execute(fresh_id("neighbour"), script(token_ms=5), max_tokens=80)
    waiting = battered.execute(fresh_id("waiting"), max_tokens=4)
    poison.finished(within_sec=40.0).assert_whole()
    assert (poison.events[-1].data["code"], poison.events[-1].data["retriable"]) == ("ENGINE_LOST", True)
    assert len(poison.tokens) == poison.events[-1].data["tokens_out"] == 20
    for stream in (neighbour, waiting):
        stream.finished(within_sec=40.0).assert_whole()
        assert stream.events[-1].event == "end"
    assert battered.health()["engine_restarts"] == restarts + 3


def test_a_prompt_that_kills_the_engine_takes_only_its_job_with_it(battered: RunningWorker) -> None:
    """The engine dies in the middle of a prefill; the next job works."""
    doomed = battered.execute(fresh_id("doomed"), script(500, die_at=0)).finished(within_sec=40.0)
    doomed.assert_whole()
    assert (doomed.events[-1].data["code"], len(doomed.tokens)) == ("ENGINE_LOST", 0)
    after = battered.execute(fresh_id("after"), max_tokens=2).finished(within_sec=15.0)
    assert after.events[-1].event == "end"


def test_an_engine_that_hangs_is_noticed_though_nobody_cancels(battered: RunningWorker) -> None:
    """The engine is killed and its jobs continue with the next one; meanwhile health is not 200 (G11)."""
    restarts = battered.health()["engine_restarts"]
    stream = battered.execute(fresh_id("patient"), script(token_ms=5), max_tokens=200).tokens_seen(5)
    battered.signal_engine(signal.SIGSTOP)
    wait_until(
        lambda: battered.client.get("/health").status_code == 503, within_sec=8.0, what="an honest health"
    )
    stream.finished(within_sec=30.0).assert_whole()
    assert len(stream.tokens) == 200
    assert battered.health()["engine_restarts"] == restarts + 1


def test_an_idle_engine_that_hangs_is_noticed_too(battered: RunningWorker) -> None:
    """It is replaced before a job needs it."""
    restarts = battered.health()["engine_restarts"]
    battered.signal_engine(signal.SIGSTOP)
    wait_until(
        lambda: battered.health()["engine_restarts"] == restarts + 1, within_sec=10.0, what="a restart"
    )
    battered.ready(within_sec=15.0)


def test_jobs_are_admitted_by_what_they_hold_and_preempted_when_cells_run_out() -> None:
    """Four jobs that could fill all cells run together; each has the output that it has alone."""
    with running_worker(parallel=4, context_length=1200) as cramped:
        streams = [
            cramped.execute(fresh_id("large"), script(100, token_ms=1), max_tokens=500, seed=n).started()
            for n in range(4)
        ]
        wait_until(lambda: cramped.health()["jobs_running"] == 4, what="all four running")
        for stream in streams:
            stream.finished(within_sec=60.0).assert_whole()
            assert len(stream.tokens) == 500
        assert sum(cramped.record(stream.job_id)["requeues"] for stream in streams) > 0
        assert cramped.record(streams[0].job_id)["requeues"] == 0, "the oldest is never preempted"
        again = [
            cramped.execute(s.job_id, script(100, token_ms=1), max_tokens=500, seed=n)
            for n, s in enumerate(streams)
        ]
        for n, stream in enumerate(again):
            if n:
                cramped.cancel(stream.job_id)
        assert [e.data for e in again[0].finished(within_sec=30.0).tokens] == [
            e.data for e in streams[0].tokens
        ]


def test_a_model_that_cannot_be_loaded_ends_the_worker_with_one_clear_line() -> None:
    """Exit code 1, MODEL_LOAD_FAILED narrated, a client that waited for the model gets an error, nothing left."""
    with running_worker(wait=False, env={"WORKER_ORCD_SCRIPTED_LOAD_SEC": "-1"}) as failing:
        assert wait_until(failing.process.poll, within_sec=20.0, what="the exit") == 1
        lines = [line for line in failing.log.read_text().splitlines() if not line.startswith("{")]
        assert len(lines) == 1
        assert "the scripted model fails to load as configured" in lines[0]
        assert failing.narrated("error")["code"] == "MODEL_LOAD_FAILED"
        assert failing.narrated("shutdown")["exit_code"] == 1


def test_a_failure_of_the_device_is_narrated_once(worker: RunningWorker) -> None:
    """By the front, which narrates every job's end, with the job's correlation id. The client's message has it, too."""
    failed, after = (
        worker.execute(fresh_id("narrated"), prompt, max_tokens=5).finished()
        for prompt in (script(token_ms=1, fail_at=2), script(token_ms=1))
    )
    worker.narrated("execute_end", job_id=after.job_id)
    errors = [e for e in worker.narration() if (e["action"], e.get("job_id")) == ("error", failed.job_id)]
    assert [error["code"] for error in errors] == ["INTERNAL"]
    assert errors[0]["correlation_id"] == failed.headers["x-correlation-id"]
    assert failed.events[-1].data["message"].endswith(f"correlation id {errors[0]['correlation_id']}")
