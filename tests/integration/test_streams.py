"""Streams that can be resumed (contract, 2 and 5), and readers that do not read (G10)."""

import json
import signal
import socket
import statistics
from collections.abc import Iterator
from typing import Any

import httpx2
import psutil
import pytest

from tests.helpers import at_rest, ended_state, fresh_id, receipt_of, script, stalled_client
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until

ENDLESS = script(token_ms=5)


EventFields = tuple[str, str, Any]
"""Id, name and data of an event."""


def events_of(worker: RunningWorker, job_id: str, after: str | None = None) -> list[EventFields]:
    """A job's stream to its end."""
    return list(following(worker, job_id, after))


def following(worker: RunningWorker, job_id: str, after: str | None = None) -> Iterator[EventFields]:
    """A job's events as they arrive."""
    headers = {} if after is None else {"Last-Event-ID": after}
    with worker.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                yield fields["id"], fields["event"], json.loads(fields["data"])
                fields = {}


def reported(stream: Stream) -> list[EventFields]:
    """What the first reader got."""
    return [(event.id, event.event, event.data) for event in stream.events]


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_a_late_reader_gets_the_same_events_and_the_one_ending(worker: RunningWorker, how: str) -> None:
    """The same bytes from any position, for every reader (G2)."""
    prompt = script(token_ms=1, fail_at=4) if how == "failed" else script(token_ms=3)
    stream = worker.execute(fresh_id(how), prompt, max_tokens=8 if how != "cancelled" else 500)
    if how == "cancelled":
        stream.tokens_seen(3)
        worker.cancel(stream.job_id)
    stream.finished().assert_whole()
    assert ended_state(worker, stream.job_id)["state"] == how
    whole = reported(stream)
    assert events_of(worker, stream.job_id) == whole
    for after in (0, 2, len(whole) - 2):
        assert events_of(worker, stream.job_id, whole[after][0]) == whole[after + 1 :]


@pytest.mark.parametrize("how", ["completed", "cancelled"])
def test_a_reader_that_has_seen_the_end_gets_204(worker: RunningWorker, how: str) -> None:
    """An `EventSource` reconnects after every 200 and stops at a 204 (contract, section 2)."""
    stream = worker.execute(fresh_id(), script(token_ms=3), max_tokens=4 if how == "completed" else 500)
    if how == "cancelled":
        stream.tokens_seen(1)
        worker.cancel(stream.job_id)
    last = stream.finished().events[-1]
    for number in (last.number, last.number + 1, 10**9):
        answer = resumed(worker, stream.job_id, f"{last.incarnation}.{number}")
        assert (answer.status_code, answer.content) == (204, b"")
    before = f"{last.incarnation}.{last.number - 1}"
    assert resumed(worker, stream.job_id, before).status_code == 200


def resumed(worker: RunningWorker, job_id: str, after: str) -> httpx2.Response:
    """A job's events after that position, read to their end."""
    return worker.client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": after})


def test_a_position_in_another_use_of_the_id_is_not_found(worker: RunningWorker) -> None:
    """Never another job's events: not while the later use is live, and not after its end (contract, section 2)."""
    first = worker.execute(fresh_id("again"), script(token_ms=1), max_tokens=3).finished()
    second = worker.execute(first.job_id, ENDLESS).tokens_seen(2)
    assert {event.incarnation for event in first.events}.isdisjoint(
        event.incarnation for event in second.events
    )
    for state in ("running", "cancelled"):
        for event in first.events:
            answer = resumed(worker, first.job_id, event.id)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "JOB_NOT_FOUND"), event
        if state == "running":
            worker.cancel(second.job_id)
            second.finished()
        assert ended_state(worker, second.job_id)["state"] == "cancelled"
    assert events_of(worker, second.job_id, second.events[1].id) == reported(second)[2:]


def test_a_position_from_before_a_restart_of_the_worker_is_not_found() -> None:
    """An incarnation is unique across restarts, although runs are counted from 1 again."""
    with running_worker() as before:
        first = before.execute("again", script(token_ms=1), max_tokens=3).finished()
    with running_worker() as after:
        second = after.execute("again", script(token_ms=1), max_tokens=3).finished()
        assert resumed(after, "again", first.events[1].id).status_code == 404
        assert resumed(after, "again", second.events[1].id).status_code == 200


def test_a_reader_who_claims_to_have_seen_too_much_gets_the_ending_all_the_same(
    worker: RunningWorker,
) -> None:
    """Exactly one terminal event, to every reader of a live job (G2)."""
    stream = worker.execute(fresh_id(), script(token_ms=20), max_tokens=30).tokens_seen(2)
    beyond = f"{stream.events[0].incarnation}.500"
    assert events_of(worker, stream.job_id, beyond) == reported(stream.finished())[-1:]
    assert stream.events[-1].event == "end"


def test_two_readers_follow_one_job_each_at_its_own_pace(worker: RunningWorker) -> None:
    """The second one joins in the middle; neither affects the other."""
    first = worker.execute(fresh_id(), script(token_ms=5), max_tokens=60).tokens_seen(5)
    second = events_of(worker, first.job_id)
    assert second == reported(first.finished())
    assert len(second) == 62


def test_a_followers_leaving_stops_nothing(worker: RunningWorker) -> None:
    """Neither beside the client that executes the job, nor when it is the last reader."""
    first = worker.execute(fresh_id(), ENDLESS, on_disconnect="continue").tokens_seen(1)
    for last in (False, True):
        if last:
            first.leave()
            first.finished()
        reading = following(worker, first.job_id)
        next(reading)
        reading.close()  # type: ignore[attr-defined]
        before = worker.record(first.job_id)["tokens_out"]
        more = before + 20
        while worker.record(first.job_id)["tokens_out"] < more:
            assert worker.record(first.job_id)["state"] == "running"
        assert worker.record(first.job_id)["state"] == "running"
    worker.cancel(first.job_id)
    assert ended_state(worker, first.job_id)["state"] == "cancelled"


def test_a_job_is_stopped_when_its_last_reader_leaves(worker: RunningWorker) -> None:
    """Not before: another one reads on after the client that executes the job has left."""
    first = worker.execute(fresh_id(), ENDLESS).tokens_seen(1)
    reading = following(worker, first.job_id)
    next(reading)
    first.leave()
    first.finished()
    before = worker.record(first.job_id)["tokens_out"]
    assert all(next(reading)[1] == "token" for _ in range(before + 20))
    record = worker.record(first.job_id)
    assert (record["state"], record["receipt"]) == ("running", None)
    reading.close()  # type: ignore[attr-defined]
    assert receipt_of(worker, first.job_id, "disconnect")
    assert worker.narrated("disconnect", job_id=first.job_id)


def test_a_stopped_request_stops_all_its_choices_whoever_reads_them(worker: RunningWorker) -> None:
    """With the first one the request is over; a follower of another choice does not keep it."""
    name = fresh_id("choices")
    body = {"prompt": ENDLESS, "n": 2, "stream": True, "ignore_eos": True}
    with worker.client.stream("POST", "/v1/completions", json=body, headers={"X-Job-Id": name}) as answer:
        lines = answer.iter_lines()
        next(lines)
        reading = following(worker, f"{name}.1")
        next(reading)
        worker.cancel(name)
        assert list(lines)
        *_, (_, last, data) = reading
    assert (last, data["code"], data["reason"]) == ("error", "CANCELLED", "disconnect")
    assert ended_state(worker, name)["state"] == "cancelled"


def test_a_job_that_continues_without_readers_is_picked_up_again(worker: RunningWorker) -> None:
    """No event is lost or sent twice; the disconnect is narrated."""
    stream = worker.execute(
        fresh_id(), script(token_ms=5), max_tokens=80, on_disconnect="continue"
    ).tokens_seen(5)
    stream.leave()
    stream.finished()
    left = worker.narrated("disconnect", job_id=stream.job_id)
    assert left["on_disconnect"] == "continue"
    last = stream.events[-1]
    rest = events_of(worker, stream.job_id, last.id)
    assert [id_ for id_, _, _ in rest] == [f"{last.incarnation}.{n}" for n in range(last.number + 1, 82)]
    assert rest[-1][1] == "end"
    assert ended_state(worker, stream.job_id)["state"] == "completed"


def test_an_event_stream_of_nobody_is_404(worker: RunningWorker) -> None:
    """In the usual shape."""
    answer = worker.client.get(f"/jobs/{fresh_id('nobody')}/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "JOB_NOT_FOUND")


@pytest.mark.parametrize(
    "after", ["-1", "1", "one", "x-1.", ".1", "x-1.2.1", "x-1.-1", "x-1.0x1", "x-1." + "9" * 30]
)
def test_a_last_event_id_that_is_no_position_is_refused(worker: RunningWorker, after: str) -> None:
    """400, naming the header."""
    stream = worker.execute(fresh_id(), max_tokens=1).finished()
    answer = worker.client.get(f"/jobs/{stream.job_id}/events", headers={"Last-Event-ID": after})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_readers_of_one_job_are_bounded(worker: RunningWorker) -> None:
    """The 33rd is refused, and the others continue."""
    stream = worker.execute(fresh_id(), ENDLESS).tokens_seen(1)
    readers = [following(worker, stream.job_id) for _ in range(31)]
    for reader in readers:
        next(reader)
    answer = worker.client.get(f"/jobs/{stream.job_id}/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "QUEUE_FULL")
    worker.cancel(stream.job_id)
    for reader in readers:
        assert list(reader)[-1][1] == "error"
    stream.finished().assert_whole()


def test_readers_of_an_ended_job_are_bounded_too() -> None:
    """Readers from before the end count as well; when one leaves, another one is accepted."""
    with running_worker(max_tokens_out=8000) as worker:
        # Longer than what the buffers on its way to such a reader take.
        stream = worker.execute(fresh_id(), script(token_ms=0), max_tokens=8000).finished()
        path = f"GET /jobs/{stream.job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        readers = [asking(worker, path) for _ in range(31)]

        def refused() -> httpx2.Response | None:
            # Who asks is a reader, too: one of the others may have been refused for it.
            readers.append(asking(worker, path))
            answer = asked(worker, stream.job_id)
            return answer if answer.status_code == 429 else None

        try:
            answer = wait_until(refused, what="the bound")
            assert answer.json()["error"]["code"] == "QUEUE_FULL"
        finally:
            for reader in readers:
                reader.close()
        wait_until(lambda: asked(worker, stream.job_id).status_code == 200, what="a place")


def asked(worker: RunningWorker, job_id: str) -> httpx2.Response:
    """The answer to a request for a job's events; if they come, no more than the first of them is read."""
    with worker.client.stream("GET", f"/jobs/{job_id}/events") as answer:
        if answer.status_code != 200:
            answer.read()
        return answer


def asking(worker: RunningWorker, request: bytes) -> socket.socket:
    """A client that sends a request and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", worker.port))
    client.sendall(request)
    return client


def test_a_client_that_leaves_while_its_prompt_is_counted_is_noticed_at_once(battered: RunningWorker) -> None:
    """Its place in the queue is free although the engine does not answer."""
    battered.signal_engine(signal.SIGSTOP)
    job_id = fresh_id("hasty")
    with pytest.raises(httpx2.TimeoutException):
        battered.client.post("/execute", json={"job_id": job_id, "prompt": "x"}, timeout=0.2)
    record = ended_state(battered, job_id)
    assert record["state"] == "cancelled"
    assert isinstance(record["ended_ms"], float)
    assert record["ended_ms"] < 600
    battered.ready(within_sec=20)


LONG: dict[str, Any] = {"prompt": script(token_ms=1), "max_tokens": 8000}


def test_a_reader_that_takes_nothing_slows_nobody() -> None:
    """Its neighbour is as fast as beside a job whose reader reads."""
    with running_worker(env={"WORKER_ORCD_TEST_STALL_SEC": "60"}, max_tokens_out=8000) as worker:

        def neighbour_sec(beside: str) -> float:
            wait_until(lambda: worker.record(beside).get("tokens_out", 0) > 1500, what="full buffers")
            took = []
            for _ in range(5):
                neighbour = worker.execute(
                    fresh_id("neighbour"), script(token_ms=2), max_tokens=100
                ).finished()
                neighbour.assert_whole()
                assert len(neighbour.tokens) == 100
                took.append(neighbour.tokens[-1].at - neighbour.tokens[0].at)
            assert worker.record(beside)["ended_ms"] is None, "too short to tell"
            worker.cancel(beside)
            return statistics.median(took)

        read = worker.execute(fresh_id("read"), **LONG)
        beside_read = neighbour_sec(read.job_id)
        read.finished()
        job_id = fresh_id("stalled")
        with stalled_client(worker, job_id, **LONG):
            beside_stalled = neighbour_sec(job_id)
        print(
            f"100 tokens took {beside_read:.2f} s beside a read job, {beside_stalled:.2f} s beside a stalled one"
        )
        assert beside_stalled <= 2 * beside_read + 0.3
        at_rest(worker)


def test_a_reader_that_takes_nothing_is_dropped() -> None:
    """Its job ends as after a disconnect."""
    with running_worker(env={"WORKER_ORCD_TEST_STALL_SEC": "0.5"}, max_tokens_out=8000) as worker:
        job_id = fresh_id("stalled")
        with stalled_client(worker, job_id, **LONG):
            ended_state(worker, job_id)
        record = worker.record(job_id)
        assert record["state"] == "cancelled"
        assert record["receipt"]["reason"] == "disconnect"
        at_rest(worker)


@pytest.mark.parametrize("tokens", [20, 1600, 2300])
def test_a_reader_that_takes_nothing_of_what_the_buffers_hold_is_dropped_too(tokens: int) -> None:
    """Also after the job's end, and if all of it fits in the kernel's buffer."""
    # What the client's kernel has taken is an idle connection to the worker, and closed as such.
    env = {"WORKER_ORCD_TEST_STALL_SEC": "0.5"}
    with running_worker(env=env, max_tokens_out=8000, keep_alive_sec=3) as worker:
        job_id = fresh_id("stalled")
        with stalled_client(worker, job_id, prompt=script(token_ms=0.3), max_tokens=tokens) as client:
            port = client.getsockname()[1]
            ended_state(worker, job_id)
            wait_until(lambda: port not in ports_to(worker), within_sec=20, what="the end of its connection")


def ports_to(worker: RunningWorker) -> set[int]:
    """Those at the other ends of its connections."""
    connections: Any = psutil.Process(worker.process.pid).net_connections()
    return {connection.raddr.port for connection in connections if connection.raddr}
