"""`POST /cancel`: always 202, in any state, any number of times; and what it does to the job (M0-W-1330)."""

import itertools
import json
import random
import re
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.helpers import at_rest, ended_state, fresh_id, in_prefill, queued, script, undisturbed
from worker_orcd.jobs.queue import AHEAD
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until
from worker_orcd.testing.trials import stopped_in_time

ENDLESS = script(token_ms=5)
STATES = ["active", "queued", "unknown", "finished", "failed", "cancelled"]


@contextmanager
def job_in(state: str, narrow: RunningWorker) -> Iterator[tuple[str, Stream | None]]:
    """A job in this state, on a worker that runs one job at a time."""
    job_id = fresh_id(state)
    match state:
        case "active":
            yield job_id, narrow.execute(job_id, ENDLESS).tokens_seen(1)
        case "queued":
            blocker = narrow.execute(fresh_id("blocker"), ENDLESS).started()
            yield job_id, queued(narrow, narrow.execute(job_id, ENDLESS))
            narrow.cancel(blocker.job_id)
            blocker.finished()
        case "unknown":
            yield job_id, None
        case "finished":
            yield job_id, narrow.execute(job_id, max_tokens=1).finished()
        case "failed":
            yield job_id, narrow.execute(job_id, script(fail_at=1)).finished()
        case _:
            stream = narrow.execute(job_id, ENDLESS).started()
            narrow.cancel(job_id)
            yield job_id, stream.finished()


@pytest.mark.parametrize("state", STATES)
def test_a_cancel_is_accepted_with_exactly_this_body(narrow: RunningWorker, state: str) -> None:
    """202 and the same bytes in every state, for unknown jobs, and for a repeated cancel."""
    with job_in(state, narrow) as (job_id, stream):
        before = [] if stream is None else list(stream.events)
        for _ in range(2):
            answer = narrow.cancel(job_id)
            assert answer.status_code == 202
            assert answer.content == b'{"status":"cancelling","job_id":"%s"}' % job_id.encode()
            assert answer.headers["content-type"] == "application/json"
        if stream is None:
            assert narrow.client.get(f"/jobs/{job_id}").status_code == 404
        elif state in ("active", "queued"):
            stream.finished().assert_whole()
            assert stream.events[-1].data["code"] == "CANCELLED"
        else:
            assert stream.events == before


@pytest.mark.parametrize("state", STATES)
def test_the_cancel_is_narrated_by_what_is_known_of_the_job(narrow: RunningWorker, state: str) -> None:
    """INFO for a live job; WARN for one that is unknown or has ended."""
    with job_in(state, narrow) as (job_id, _):
        correlation = fresh_id("correlation")
        narrow.cancel(job_id, **{"X-Correlation-Id": correlation})
        reported = narrow.narrated("cancel", correlation_id=correlation)
    known = {"active": "live", "queued": "live", "unknown": "unknown"}.get(state, "finished")
    assert reported["job_id"] == job_id
    assert reported["known"] == known
    assert reported["level"] == ("INFO" if known == "live" else "WARN")
    assert (
        reported["human"]
        == {
            "live": f"Cancelling job {job_id}",
            "unknown": f"Cancel requested for unknown job {job_id}",
            "finished": f"Cancel requested for finished job {job_id}",
        }[known]
    )


def test_the_stream_gets_one_cancelled_event_with_all_fields_and_closes(worker: RunningWorker) -> None:
    """The last event is `error` CANCELLED with all fields; then the connection is closed."""
    prompt = script(200, token_ms=5)
    stream = worker.execute(fresh_id(), prompt).tokens_seen(3)
    worker.cancel(stream.job_id)
    stream.finished(within_sec=5.0).assert_whole()
    assert stream.events[-1].data == {
        "code": "CANCELLED",
        "message": "Job cancelled by client request",
        "retriable": False,
        "reason": "client",
        "phase": "decode",
        "prompt_tokens": len(prompt),
        "tokens_out": len(stream.tokens),
    }


def test_a_cancel_during_a_long_prefill_stops_in_the_middle_of_it(worker: RunningWorker) -> None:
    """The phase is `prefill`, part of the prompt was computed, nothing was generated."""
    stream = worker.execute(fresh_id(), script(3000, row_ms=1)).started()
    in_prefill(worker, stream)
    worker.cancel(stream.job_id)
    stream.finished(within_sec=5.0).assert_whole()
    error = stream.events[-1].data
    assert error["phase"] == "prefill"
    assert 0 < error["prompt_tokens"] < 3000
    assert error["tokens_out"] == 0


def test_a_cancel_of_a_queued_job_ends_it_without_the_engine(narrow: RunningWorker) -> None:
    """The stream is a single error with phase `queued`; the running job is unaffected."""
    running = narrow.execute(fresh_id(), script(token_ms=3), max_tokens=60).started()
    waiting = queued(narrow, narrow.execute(fresh_id(), ENDLESS))
    narrow.cancel(waiting.job_id)
    waiting.finished(within_sec=5.0).assert_whole()
    assert [event.event for event in waiting.events] == ["error"]
    assert waiting.events[0].data["phase"] == "queued"
    running.finished().assert_whole()
    assert len(running.tokens) == 60


def test_a_cancelled_jobs_place_in_the_queue_is_free_and_the_order_of_the_rest_stays(
    narrow: RunningWorker,
) -> None:
    """Full queue: 429. Cancel one in the middle: there is room again, and the others run in their order."""
    running = narrow.execute(fresh_id("running"), ENDLESS).started()
    first = queued(narrow, narrow.execute(fresh_id("first"), max_tokens=2))
    second = queued(narrow, narrow.execute(fresh_id("second"), max_tokens=2))
    refused = narrow.execute(fresh_id("refused")).finished()
    assert refused.refusal is not None
    assert refused.refusal["code"] == "QUEUE_FULL"
    narrow.cancel(first.job_id)
    first.finished(within_sec=5.0)
    third = queued(narrow, narrow.execute(fresh_id("third"), max_tokens=2))
    narrow.cancel(running.job_id)
    for stream in (second.finished(), third.finished()):
        stream.assert_whole()
        assert stream.events[-1].event == "end"
    assert second.events[0].data["started_at"] < third.events[0].data["started_at"]


def test_the_first_cancel_decides(worker: RunningWorker) -> None:
    """Later ones are accepted and change nothing: reason and correlation id are the first one's."""
    stream = worker.execute(fresh_id(), ENDLESS, timeout_ms=60_000).tokens_seen(1)
    worker.cancel(stream.job_id, **{"X-Correlation-Id": "the-first"})
    worker.cancel(stream.job_id, **{"X-Correlation-Id": "the-second"})
    stream.finished().assert_whole()
    complete = worker.narrated("cancel_complete", job_id=stream.job_id)
    assert complete["cancel_correlation_id"] == "the-first"
    assert complete["correlation_id"] == stream.headers["x-correlation-id"]
    assert worker.record(stream.job_id)["receipt"]["cancel_correlation_id"] == "the-first"


def test_a_cancel_never_reaches_a_later_use_of_the_id(worker: RunningWorker) -> None:
    """After a job's end its id may be used again, and a cancel of the first use does not affect the second."""
    job_id = fresh_id()
    first = worker.execute(job_id, ENDLESS).tokens_seen(1)
    worker.cancel(job_id)
    first.finished()
    second = worker.execute(job_id, max_tokens=20).finished()
    second.assert_whole()
    assert second.events[-1].event == "end"
    assert worker.record(job_id)["receipt"] is None


@pytest.mark.parametrize("header", ["X-Correlation-Id", "X-Request-Id"])
def test_a_correlation_id_is_taken_over(worker: RunningWorker, header: str) -> None:
    """The answer and the narrated cancel both have the client's correlation id."""
    given = fresh_id("correlation") + "!~{}"
    answer = worker.cancel(fresh_id(), **{header: given})
    assert answer.headers["x-correlation-id"] == given
    assert worker.narrated("cancel", correlation_id=given)["known"] == "unknown"


def test_a_bad_correlation_id_does_not_hide_a_good_one(worker: RunningWorker) -> None:
    """The first valid one is used: X-Correlation-Id, X-Request-Id, the trace id."""
    bad = {"X-Correlation-Id": "with space"}
    trace = "0af7651916cd43dd8448eb211c80319c"
    parent = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    for headers, expected in (
        (bad | {"X-Request-Id": "good"} | parent, "good"),
        (bad | {"X-Request-Id": "also bad"} | parent, trace),
    ):
        answer = worker.cancel(fresh_id(), **headers)
        assert answer.headers["x-correlation-id"] == expected
    assert worker.client.get("/v1/models", headers={"X-Request-Id": "good"}).headers["x-request-id"] == "good"


@pytest.mark.parametrize("bad", ["", "with space", "x" * 129, "t\tab", "caf\u00e9"])
def test_a_bad_correlation_id_is_replaced(worker: RunningWorker, bad: str) -> None:
    """The request is served all the same, under a new id."""
    job_id = fresh_id()
    answer = worker.client.post(
        "/cancel", json={"job_id": job_id}, headers=[(b"X-Correlation-Id", bad.encode())]
    )
    assert answer.status_code == 202
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-correlation-id"])
    reported = worker.narrated("cancel", job_id=job_id)
    assert reported["correlation_id"] == answer.headers["x-correlation-id"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"\xff\xfe", None, "not valid JSON"),
        (b"null", None, "must be a JSON object"),
        (b'"test-123"', None, "must be a JSON object"),
        (b"{}", "job_id", "job_id is required"),
        (b'{"job_id": ""}', "job_id", "at least 1 character"),
        (b'{"job_id": null}', "job_id", "required"),
        (b'{"job_id": 7}', "job_id", "valid string"),
        (b'{"job_id": "a b"}', "job_id", "may only have"),
        (b'{"job_id": "a/b"}', "job_id", "may only have"),
        (b'{"job_id": "a\\n"}', "job_id", "may only have"),
        ('{"job_id": "\u00e4"}'.encode(), "job_id", "may only have"),
        (b'{"job_id": "%s"}' % (b"a" * 257), "job_id", "at most 256"),
        (b'{"group": ""}', "group", "at least 1 character"),
        (b'{"job_id": "a", "group": "g"}', "group", "cannot be combined"),
    ],
)
def test_only_a_malformed_cancel_is_refused(
    worker: RunningWorker, body: bytes, param: str | None, message: str
) -> None:
    """400 INVALID_REQUEST in the usual shape, naming the field."""
    answer = worker.client.post("/cancel", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "INVALID_REQUEST"
    assert error["retriable"] is False
    assert error.get("param") == param
    assert message in error["message"]


# Cancels that come first, groups, and answers that wait.


def test_a_cancel_that_overtakes_its_execute_wins_once(worker: RunningWorker) -> None:
    """The stream has an `error` CANCELLED and nothing else; the next use of the id runs (G8)."""
    job_id = fresh_id("overtaken")
    worker.cancel(job_id, **{"X-Correlation-Id": "the-early-one"})
    stream = worker.execute(job_id, ENDLESS).finished(within_sec=2.0)
    stream.assert_whole()
    assert [event.event for event in stream.events] == ["error"]
    assert stream.events[0].data["code"] == "CANCELLED"
    assert worker.record(job_id)["receipt"]["cancel_correlation_id"] == "the-early-one"
    assert worker.execute(job_id, max_tokens=2).finished().events[-1].event == "end"


def test_a_group_is_cancelled_together_and_by_its_exact_name(worker: RunningWorker) -> None:
    """`g` stops neither `g-1` nor a job whose id is `g`; the answer names the group."""
    group = fresh_id("group")
    members = [worker.execute(fresh_id(), ENDLESS, group=group).tokens_seen(1) for _ in range(3)]
    others = [
        worker.execute(fresh_id(), ENDLESS, group=f"{group}-1").tokens_seen(1),
        worker.execute(group, ENDLESS).tokens_seen(1),
    ]
    answer = worker.client.post("/cancel", json={"group": group})
    assert (answer.status_code, answer.json()) == (202, {"status": "cancelling", "group": group})
    for stream in members:
        stream.finished(within_sec=2.0).assert_whole()
        assert stream.events[-1].data["code"] == "CANCELLED"
        assert worker.narrated("cancel", job_id=stream.job_id)["group"] == group
    for stream in others:
        stream.tokens_seen(len(stream.tokens) + 3)
        worker.cancel(stream.job_id)
        stream.finished().assert_whole()
    assert worker.client.post("/cancel", json={"group": "nobody"}).status_code == 202


def test_an_answer_that_waits_carries_the_receipt(worker: RunningWorker) -> None:
    """200 when the job has ended; a second cancel gets the same answer."""
    stream = worker.execute(fresh_id(), ENDLESS).tokens_seen(1)
    for _ in range(2):
        answer = worker.cancel(stream.job_id, Prefer="respond-async, wait=5")
        assert answer.status_code == 200
        assert answer.headers["preference-applied"] == "wait=5"
        assert answer.json()["status"] == "cancelled"
        assert answer.json()["job_id"] == stream.job_id
        assert answer.json()["receipt"] == worker.record(stream.job_id)["receipt"]
    group = fresh_id("group")
    members = [worker.execute(fresh_id(), ENDLESS, group=group).tokens_seen(1) for _ in range(2)]
    answer = worker.client.post("/cancel", json={"group": group}, headers={"Prefer": "wait=5"})
    assert answer.status_code == 200
    assert [job["job_id"] for job in answer.json()["jobs"]] == [stream.job_id for stream in members]
    assert all(job["receipt"]["freed_ms"] >= 0 for job in answer.json()["jobs"])


def test_an_id_that_is_used_again_takes_nothing_from_an_answer_that_waits() -> None:
    """One member of the group ends at once and its id is taken again while the other's stop is waited for."""
    with running_worker(parallel=1) as worker:
        runs = worker.execute("runs", ENDLESS, group="g").tokens_seen(1)
        for n in range(AHEAD):
            queued(worker, worker.execute(f"in-the-engine-{n}", max_tokens=1))
        queued(worker, worker.execute("waits", ENDLESS, group="g"))
        answers: list[Any] = []
        body, wait = {"group": "g"}, {"Prefer": "wait=5"}
        asking = threading.Thread(
            target=lambda: answers.append(worker.client.post("/cancel", json=body, headers=wait))
        )
        worker.signal_engine(signal.SIGSTOP)
        asking.start()
        wait_until(lambda: worker.record("waits")["state"] == "cancelled", what="the end of who waits")
        again = worker.execute("waits", max_tokens=2)
        wait_until(lambda: worker.record("waits")["state"] == "queued", what="its id's next use")
        worker.signal_engine(signal.SIGCONT)
        asking.join()
        jobs = answers[0].json()["jobs"]
        assert [(job["job_id"], job["receipt"]["phase"]) for job in jobs] == [
            ("runs", "decode"),
            ("waits", "queued"),
        ]
        assert again.finished().events[-1].event == "end"
        runs.finished().assert_whole()


def test_an_answer_that_waits_for_nothing_is_the_plain_one(worker: RunningWorker) -> None:
    """Unknown, or ended by itself: 202, without waiting."""
    ended = worker.execute(fresh_id(), max_tokens=1).finished()
    for job_id in (fresh_id("unknown"), ended.job_id):
        asked_at = time.monotonic()
        answer = worker.cancel(job_id, Prefer="wait=10")
        assert (answer.status_code, answer.json()) == (202, {"status": "cancelling", "job_id": job_id})
        assert time.monotonic() - asked_at < 5.0


@pytest.mark.parametrize(
    "prefer", ["wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "wait-for-it=1", "wait=" + "9" * 5000]
)
def test_no_preference_keeps_a_job_running(worker: RunningWorker, prefer: str) -> None:
    """A cancel is 202 unless its body is malformed (contract, 3); preferences not understood are ignored (RFC 7240)."""
    stream = worker.execute(fresh_id(), ENDLESS).tokens_seen(1)
    answer = worker.cancel(stream.job_id, Prefer=prefer)
    assert (answer.status_code, answer.json()) == (202, {"status": "cancelling", "job_id": stream.job_id})
    assert stream.finished().events[-1].data["code"] == "CANCELLED"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_cancel_is_read_whatever_its_content_type(worker: RunningWorker, content_type: str | None) -> None:
    """As `curl -d` sends it."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = worker.client.post("/cancel", content=b'{"job_id": "nobody"}', headers=headers)
    assert answer.status_code == 202


def test_what_a_cancelled_job_held_is_free_before_its_terminal_event(worker: RunningWorker) -> None:
    """At the moment the error event arrives, the engine's own count says 0 cells (G4). In decode and prefill."""
    for trial in range(12):
        prompt = script(500, token_ms=4) if trial % 2 else script(600, row_ms=1)
        stream = worker.execute(fresh_id(), prompt).started()
        if trial % 2:
            stream.tokens_seen(1 + trial % 4)
        else:
            in_prefill(worker, stream)
        assert worker.health()["kv_cells_used"] > 0
        worker.cancel(stream.job_id)
        stream.wait(lambda s: s.terminal is not None, what="the terminal event")
        health = worker.health()
        assert (health["kv_cells_used"], health["jobs_running"], health["jobs_queued"]) == (0, 0, 0)
        receipt = worker.record(stream.job_id)["receipt"]
        assert receipt["kv_cells_before"] > 0
        assert receipt["kv_cells_after"] == 0
        assert receipt["freed_ms"] <= receipt["terminal_ms"]


def test_a_cancel_touches_no_job_whose_id_only_resembles(worker: RunningWorker) -> None:
    """Prefixes, suffixes, other cases: ids are matched exactly."""
    job_id = fresh_id("Job")
    others = [
        f"{job_id}0",
        f"0{job_id}",
        job_id[:-1] + ".",
        job_id.lower(),
        job_id[1:],
        f"{job_id}:",
        f"{job_id}-",
    ]
    streams = [worker.execute(other, script(token_ms=1), max_tokens=40) for other in others]
    victim = worker.execute(job_id, ENDLESS).tokens_seen(1)
    worker.cancel(job_id)
    victim.finished(within_sec=5.0)
    assert victim.events[-1].data["code"] == "CANCELLED"
    for stream in streams:
        stream.finished().assert_whole()
        assert stream.events[-1].data["stop_reason"] == "length"


def test_neighbours_of_cancelled_jobs_get_the_same_stream_as_undisturbed(worker: RunningWorker) -> None:
    """In a storm of cancels with aborted steps no token is lost, repeated or reordered (G6)."""

    def neighbours() -> list[Stream]:
        return [
            worker.execute(fresh_id("neighbour"), script(100, token_ms=5), seed=seed, max_tokens=60)
            for seed in range(1, 6)
        ]

    undisturbed = [stream.finished().text for stream in neighbours()]
    streams = neighbours()
    for stream in streams:
        stream.tokens_seen(1)
    storms = 0
    while any(stream.closed_at is None for stream in streams):
        victim = worker.execute(fresh_id("victim"), script(300, row_ms=1)).started()
        worker.cancel(victim.job_id)
        victim.finished().assert_whole()
        storms += 1
    assert storms >= 10
    for stream, text in zip(streams, undisturbed, strict=True):
        stream.assert_whole()
        assert stream.text == text


@pytest.mark.parametrize("victims", [1, 3])
def test_cancels_delay_a_neighbour_by_a_step_at_most(worker: RunningWorker, victims: int) -> None:
    """Steps take an exact time here. The gap between a neighbour's tokens around cancels at random moments of a step is
    one step more than its normal gap, however many are cancelled in it (G6)."""
    token_ms = 20
    step_sec = (1 + victims) * token_ms / 1000
    moments = random.Random(victims)
    neighbour = worker.execute(fresh_id("neighbour"), script(token_ms=token_ms), max_tokens=2048)
    neighbour.tokens_seen(2)
    late: list[float] = []
    for _ in range(16):
        streams = [worker.execute(fresh_id("victim"), script(token_ms=token_ms)) for _ in range(victims)]
        for stream in streams:
            stream.tokens_seen(2)
        threading.Event().wait(moments.uniform(0.0, step_sec))  # The random moment itself.
        asked = time.monotonic()
        for stream in streams:
            worker.cancel(stream.job_id)
        ended = max(stream.finished().events[-1].at for stream in streams)
        neighbour.tokens_seen(len(neighbour.tokens) + 2)
        times = [token.at for token in neighbour.tokens]
        around = [b - a for a, b in itertools.pairwise(times) if b >= asked and a <= ended]
        late.append((max(around) - step_sec) / step_sec)
    worker.cancel(neighbour.job_id)
    neighbour.finished().assert_whole()
    late.sort()
    print(f"{victims} cancelled: late by {statistics.median(late):.2f} steps, at most {late[-1]:.2f}")
    assert statistics.median(late) <= 0.75, (
        late
    )  # Half a step is lost, and the next is shorter by the cancelled jobs.
    assert late[len(late) * 9 // 10] <= 1.0, late


def test_a_cancel_while_the_model_loads_ends_at_once_and_the_rest_runs_afterwards() -> None:
    """Phase `loading`; the jobs before and after it wait for the model and run."""
    with running_worker(wait=False, env={"WORKER_ORCD_SCRIPTED_LOAD_SEC": "1.5"}) as loading:
        wait_until(lambda: _status(loading) == "loading", what="a loading worker")
        assert loading.client.get("/health").status_code == 503
        streams = [loading.execute(fresh_id(name), max_tokens=3) for name in ("before", "victim", "after")]
        before, victim, after = (stream.wait(lambda s: s.status == 200, what="200") for stream in streams)
        loading.cancel(victim.job_id)
        victim.finished(within_sec=5.0).assert_whole()
        assert _status(loading) == "loading"
        assert [event.event for event in victim.events] == ["error"]
        assert victim.events[0].data["phase"] == "loading"
        assert (
            loading.record(victim.job_id)["receipt"]["terminal_ms"] < 1000
        )  # It loads for longer than that.
        assert before.events == after.events == []
        for stream in (before, after):
            stream.finished().assert_whole()
            assert stream.events[-1].event == "end"
        at_rest(loading)


def _status(worker: RunningWorker) -> str | None:
    try:
        return str(worker.health()["status"])
    except Exception:  # noqa: BLE001  # not listening yet, in whatever way the client says so
        return None


def test_a_cancel_of_a_stopped_engine_completes_within_its_deadline(battered: RunningWorker) -> None:
    """SIGSTOP: the engine is judged stuck and killed; its death frees the job (G5). The first request decides."""
    restarts = battered.health()["engine_restarts"]
    victim = battered.execute(fresh_id("victim"), ENDLESS).tokens_seen(2)
    neighbour = battered.execute(fresh_id("neighbour"), ENDLESS).tokens_seen(2)
    battered.signal_engine(signal.SIGSTOP)
    asked_at = time.monotonic()
    battered.cancel(victim.job_id, **{"X-Correlation-Id": "the-one-that-counts"})
    battered.cancel(victim.job_id, **{"X-Correlation-Id": "too-late"})
    _assert_rescued(battered, victim, neighbour, asked_at, restarts)
    complete = battered.narrated("cancel_complete", job_id=victim.job_id)
    assert complete["cancel_correlation_id"] == "the-one-that-counts"
    assert battered.narrated("cancel", correlation_id="too-late")["repeated"] is True


def test_a_cancel_of_a_hung_engine_completes_within_its_deadline(battered: RunningWorker) -> None:
    """The same for a native call that never returns."""
    restarts = battered.health()["engine_restarts"]
    neighbour = battered.execute(fresh_id("neighbour"), ENDLESS).tokens_seen(2)
    victim = battered.execute(fresh_id("victim"), script(token_ms=5, hang_at=3)).tokens_seen(3)
    # A cancel that is there before the call is made stops the job as any other: see that nothing comes any more.
    wait_until(lambda: time.monotonic() - neighbour.tokens[-1].at > 0.3, what="the hang")
    asked_at = time.monotonic()
    battered.cancel(victim.job_id)
    _assert_rescued(battered, victim, neighbour, asked_at, restarts)


def _assert_rescued(
    worker: RunningWorker, victim: Stream, neighbour: Stream, asked_at: float, restarts: int
) -> None:
    """CANCELLED in time, 503 from health meanwhile, and the neighbour continues undisturbed (G5, G7, G11)."""

    def sick() -> dict[str, Any] | None:
        answer = worker.client.get("/health")
        return answer.json() if answer.status_code == 503 else None

    # From the moment it is judged stuck until its successor is ready.
    assert wait_until(sick, what="honest health")["status"] == "unhealthy"
    assert worker.client.get("/readyz").status_code == 503
    assert worker.client.get("/livez").status_code == 200
    victim.wait(lambda s: s.terminal is not None, within_sec=10.0, what="the terminal event")
    assert victim.terminal is not None
    assert victim.terminal.at - asked_at <= 5.0
    victim.finished().assert_whole()
    assert victim.terminal.data["code"] == "CANCELLED"
    receipt = worker.record(victim.job_id)["receipt"]
    assert receipt["stopped_ms"] <= receipt["freed_ms"] <= receipt["terminal_ms"] <= 5000
    assert receipt["kv_cells_after"] == 0
    worker.ready(within_sec=15.0)
    health = worker.health()
    assert health["engine_restarts"] == restarts + 1
    neighbour.tokens_seen(len(neighbour.tokens) + 5)
    worker.cancel(neighbour.job_id)
    neighbour.finished().assert_whole()
    assert worker.record(neighbour.job_id)["requeues"] == 1
    again = worker.execute(victim.job_id, max_tokens=3).finished()
    assert again.events[-1].event == "end"


def test_a_cancel_while_the_engine_comes_back_ends_at_once(battered: RunningWorker) -> None:
    """A job that waits for the next engine is in phase `loading` and ends without it."""
    battered.signal_engine(signal.SIGKILL)
    wait_until(lambda: battered.health()["status"] == "unhealthy", what="the loss to be noticed")
    stream = battered.execute(fresh_id(), ENDLESS).wait(lambda s: s.status == 200, what="200")
    battered.cancel(stream.job_id)
    stream.finished(within_sec=2.0).assert_whole()
    assert [event.data["phase"] for event in stream.events] == ["loading"]
    battered.ready()


def test_twenty_clients_cancelling_one_job_at_once_are_as_good_as_one(worker: RunningWorker) -> None:
    """All get 202 with the same body; the stream has one ending, the narration one success (G3)."""
    stream = worker.execute(fresh_id(), script(token_ms=20)).tokens_seen(2)
    together = threading.Barrier(20)

    def cancel(number: int) -> tuple[int, Any]:
        together.wait()
        answer = worker.cancel(stream.job_id, **{"X-Correlation-Id": f"{stream.job_id}-{number}"})
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(cancel, range(20)))
    assert answers == [(202, {"status": "cancelling", "job_id": stream.job_id})] * 20
    stream.finished(within_sec=5.0).assert_whole()
    reported = [event for event in worker.narration() if event.get("job_id") == stream.job_id]
    cancels = [event for event in reported if event["action"] == "cancel"]
    assert len(cancels) == 20
    deciding = [event for event in cancels if event["known"] == "live" and not event["repeated"]]
    completes = [event for event in reported if event["action"] == "cancel_complete"]
    assert len(deciding) == len(completes) == 1
    assert completes[0]["cancel_correlation_id"] == deciding[0]["correlation_id"]


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_computing_stops_within_100_ms_also_in_the_middle_of_a_long_step(
    worker: RunningWorker, phase: str
) -> None:
    """Cancels at random moments of steps longer than that (decode) or just as long (prefill), by the receipts."""
    long_steps = script(token_ms=150) if phase == "decode" else script(2000, row_ms=5)
    worker.execute(fresh_id("teaches-the-planner"), script(token_ms=150), max_tokens=4).finished()
    moments = random.Random(7)
    stopped: list[float] = []
    for _ in range(20):
        stream = worker.execute(fresh_id(), long_steps).started()
        if phase == "decode":
            stream.tokens_seen(1)
        threading.Event().wait(moments.uniform(0.0, 0.1))  # The random moment itself.
        worker.cancel(stream.job_id)
        stream.finished(within_sec=5.0).assert_whole()
        assert stream.events[-1].data["phase"] == phase
        receipt = worker.record(stream.job_id)["receipt"]
        assert receipt["tokens_out"] == len(stream.tokens)
        stopped.append(receipt["stopped_ms"])
    stopped_in_time(f"long steps of {phase}", stopped)


def test_where_steps_cannot_be_aborted_they_are_short_enough_to_wait_for() -> None:
    """A backend that never asks for the interrupt byte: the planned time of a step alone keeps the bound."""
    moments = random.Random(13)
    stopped: list[float] = []
    with running_worker(env={"WORKER_ORCD_SCRIPTED_UNABORTABLE": "1"}) as worker:
        worker.execute(fresh_id("teaches-the-planner"), script(1500, row_ms=1), max_tokens=2).finished()
        for _ in range(15):
            stream = worker.execute(fresh_id(), script(1500, row_ms=1)).started()
            in_prefill(worker, stream)
            threading.Event().wait(moments.uniform(0.0, 0.1))  # The random moment itself.
            worker.cancel(stream.job_id)
            stream.finished(within_sec=5.0).assert_whole()
            stopped.append(worker.record(stream.job_id)["receipt"]["stopped_ms"])
    stopped_in_time("steps that cannot be aborted", stopped)


def test_cancels_at_random_moments_of_a_jobs_life_end_it_once_and_free_it(worker: RunningWorker) -> None:
    """Before the first token, between tokens, on the last one, after the end: one ending, in stream and record."""
    moments = random.Random(11)
    outcomes: set[str] = set()
    began = time.monotonic()
    worker.execute(fresh_id(), script(80), max_tokens=5).finished()
    whole_sec = time.monotonic() - began
    for _ in range(40):
        stream = worker.execute(fresh_id(), script(80), max_tokens=5)
        threading.Event().wait(moments.uniform(0.0, 2 * whole_sec))  # The random moment itself.
        assert worker.cancel(stream.job_id).status_code == 202
        if stream.wait(lambda s: s.status is not None, what="an answer").events == []:
            worker.cancel(stream.job_id)  # It may have come before the job did.
        stream.finished(within_sec=5.0).assert_whole()
        record = ended_state(worker, stream.job_id)
        last = stream.events[-1]
        assert record["state"] == ("completed" if last.event == "end" else "cancelled")
        assert record["tokens_out"] == len(stream.tokens)
        assert (record["receipt"] is None) == (last.event == "end")
        outcomes.add(last.event)
    assert outcomes == {"end", "error"}


def test_the_answer_is_json_and_the_accepted_status_is_narrated_without_the_body(
    worker: RunningWorker,
) -> None:
    """The longest allowed id is unchanged in answer, record and narration."""
    job_id = "x" * 250 + fresh_id(".:_-")[-6:].rjust(6, "A")
    assert len(job_id) == 256
    stream = worker.execute(job_id, ENDLESS).tokens_seen(1)
    assert json.loads(worker.cancel(job_id).content) == {"status": "cancelling", "job_id": job_id}
    stream.finished()
    assert worker.record(job_id)["state"] == "cancelled"
    assert len(worker.narrated("cancel_complete", job_id=job_id)["human"]) <= 100


@pytest.mark.parametrize("how", ["cancelled", "timed_out", "failed", "while the engine is dead"])
def test_text_that_is_held_back_is_not_lost_with_its_job(battered: RunningWorker, how: str) -> None:
    """`w0 w1 …` may be the beginning of a stop sequence for long (contract, section 2)."""
    until = {"fail_at": 8} if how == "failed" else {}
    stream = battered.execute(
        fresh_id("held"),
        script(token_ms=20, **until),
        temperature=0,
        ignore_eos=True,
        stop=["w2 w3 w4 w5 w6 w7 w8 w9 x"],
        **({"timeout_ms": 400} if how == "timed_out" else {}),
    ).tokens_seen(6)
    if how == "while the engine is dead":
        battered.signal_engine(signal.SIGKILL)
    if how not in ("timed_out", "failed"):
        battered.cancel(stream.job_id)
    stream.finished().assert_whole()
    terminal = stream.events[-1]
    assert terminal.event == "error"
    assert stream.text == undisturbed(terminal.data["tokens_out"])
    battered.ready()
