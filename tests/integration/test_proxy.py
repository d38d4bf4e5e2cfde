"""Behind nginx with the sites in `deploy/`: what passes through, and what a proxy can hide.

A proxy that keeps its connection to the worker when its client has gone hides a disconnect, and no worker can see
through that. It is why there is `POST /cancel`: it works through the very same proxy.
"""

import json
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, cast

import pytest

from tests.helpers import (
    TRIALS,
    assert_prompt,
    ended_state,
    fresh_id,
    in_a_first_step,
    leave_and_measure,
    queued,
    script,
)
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker, Stream, free_port, running_worker, wait_until

NGINX = find("nginx")
DEPLOY = Path(__file__).parents[2] / "deploy"
ONE, SEVERAL = ((DEPLOY / name).read_text(encoding="utf-8") for name in ("nginx.conf", "nginx-several.conf"))
TOKEN_MS = 40
LAST_CHUNK = b"\r\n0\r\n\r\n"

pytestmark = pytest.mark.needs("nginx")


def changed(text: str, **changes: str) -> str:
    """A site with some directives changed, each of which occurs exactly once."""
    for name, line in changes.items():
        old = next(line.strip() for line in text.splitlines() if line.strip().startswith(f"{name} "))
        assert text.count(old) == 1, old
        text = text.replace(old, line)
    return text


HIDING = changed(
    ONE,
    proxy_buffering="proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;",
    gzip="gzip on; gzip_types *;",
    proxy_ignore_client_abort="proxy_ignore_client_abort on;",
)
"""A common kind of proxy: it compresses, buffers, and finishes requests whose client has left."""


@contextmanager
def behind(site: str, *workers: RunningWorker) -> Iterator[RunningWorker]:
    """Workers behind nginx with this site: like one worker on another port."""
    port = free_port()
    site = changed(site, listen=f"listen 127.0.0.1:{port};")
    for number, worker in enumerate(workers):
        site = site.replace(f"127.0.0.1:{8080 + number}", f"127.0.0.1:{worker.port}")
    with tempfile.TemporaryDirectory(prefix="worker-orcd-nginx-") as folder:
        log = Path(folder) / "error.log"
        places = " ".join(
            f"{name}_temp_path {folder}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = Path(folder) / "nginx.conf"
        conf.write_text(
            f"daemon off; master_process off; pid {folder}/pid; error_log {log} info; events {{ }}\n"
            f"http {{ access_log off; {places}\n{site} }}\n",
            encoding="utf-8",
        )
        process = subprocess.Popen([str(NGINX), "-e", str(log), "-p", folder, "-c", str(conf)])
        front = RunningWorker(process, port, log)
        try:
            yield front.ready()
        finally:
            front.stop()
        assert [line for line in log.read_text().splitlines() if "[alert]" in line or "[emerg]" in line] == []


@pytest.fixture(scope="module")
def _proxied(scripted_worker: RunningWorker) -> Iterator[RunningWorker]:
    with behind(ONE, scripted_worker) as front:
        yield front


@pytest.fixture
def proxied(_proxied: RunningWorker, worker: RunningWorker) -> RunningWorker:
    """The shared worker behind nginx, as `deploy/nginx.conf` has it."""
    return _proxied


@pytest.fixture(scope="module")
def _hidden(scripted_worker: RunningWorker) -> Iterator[RunningWorker]:
    with behind(HIDING, scripted_worker) as front:
        yield front


@pytest.fixture
def hidden(_hidden: RunningWorker, worker: RunningWorker) -> RunningWorker:
    """The shared worker behind a proxy that buffers and hides disconnects."""
    return _hidden


def sent(front: RunningWorker, path: str, job_id: str, body: dict[str, Any]) -> socket.socket:
    """A connection with a request whose answer has not been read."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nX-Job-Id: {job_id}\r\n"
    connection = socket.create_connection(("127.0.0.1", front.port))
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def execute(front: RunningWorker, job_id: str, prompt: str) -> socket.socket:
    """A job of `/execute`."""
    return sent(front, "/execute", job_id, {"job_id": job_id, "prompt": prompt})


def complete(front: RunningWorker, job_id: str, prompt: str) -> socket.socket:
    """A job of OpenAI's API with a complete answer: no byte is sent before it ends."""
    return sent(front, "/v1/completions", job_id, {"model": "scripted", "prompt": prompt, "max_tokens": 1000})


def progress(worker: RunningWorker, job_id: str) -> int:
    """How many tokens of a job are computed, prompt and output; 0 while the worker does not know it."""
    record = worker.record(job_id)
    return (record.get("prompt_tokens_processed") or 0) + (record.get("tokens_out") or 0)


def read_all(connection: socket.socket, until: bytes = b"nothing") -> bytes:
    """What comes until it is closed, or until this has come."""
    connection.settimeout(10.0)
    received = b""
    while not received.endswith(until) and (chunk := connection.recv(65536)):
        received += chunk
    return received


def reported(stream: Stream) -> dict[str, Any]:
    """Wait for a stream's terminal event. Returns its data."""
    terminal = stream.finished().terminal
    assert terminal is not None
    return terminal.data


def test_tokens_arrive_one_by_one_as_they_are_made(worker: RunningWorker, proxied: RunningWorker) -> None:
    """The first tokens are read while the job is still running, and they arrive at its pace."""
    stream = proxied.execute(fresh_id(), script(token_ms=TOKEN_MS), max_tokens=50)
    for count in (1, 5, 10):
        stream.tokens_seen(count)
        assert worker.record(stream.job_id)["state"] == "running"
    reported(stream)
    stream.assert_whole()
    arrivals = [token.at for token in stream.tokens]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert median(gaps) * 1000 >= TOKEN_MS / 2


def test_a_proxy_that_gathers_hands_everything_over_at_the_end(hidden: RunningWorker) -> None:
    """Without the directives against buffering, tokens arrive only at the end."""
    stream = hidden.execute(fresh_id(), script(token_ms=TOKEN_MS), max_tokens=25)
    made_ms = reported(stream)["decode_time_ms"]
    took_ms = (stream.events[-1].at - stream.events[0].at) * 1000
    assert made_ms >= 12 * TOKEN_MS
    assert took_ms <= made_ms / 4


def test_a_client_that_leaves_during_decode_is_noticed(proxied: RunningWorker) -> None:
    """As promptly as without a proxy."""
    took_ms = []
    for _ in range(TRIALS):
        stream = proxied.execute(fresh_id(), script(token_ms=5)).tokens_seen(2)
        took_ms.append(leave_and_measure(proxied, stream, "decode"))
    assert_prompt(took_ms)


def test_a_client_that_leaves_during_prefill_is_noticed(proxied: RunningWorker) -> None:
    """No data are sent whose failure would show it."""
    took_ms = []
    for _ in range(TRIALS):
        stream = in_a_first_step(proxied.execute(fresh_id(), script(1500, row_ms=1)).started())
        took_ms.append(leave_and_measure(proxied, stream, "prefill"))
    assert_prompt(took_ms)


def test_a_client_that_leaves_the_queue_is_noticed(narrow: RunningWorker) -> None:
    """No event has been sent yet."""
    with behind(ONE, narrow) as front:
        running = front.execute(fresh_id("running"), script(token_ms=5)).started()
        took_ms = []
        for _ in range(TRIALS):
            stream = queued(front, front.execute(fresh_id()))
            took_ms.append(leave_and_measure(front, stream, "queued"))
        assert_prompt(took_ms)
        front.cancel(running.job_id)
        assert reported(running)["reason"] == "client"


def test_a_client_that_leaves_before_its_whole_answer_is_noticed(proxied: RunningWorker) -> None:
    """With OpenAI's API without `stream`, not even the status has been sent."""
    job_id = fresh_id("whole")
    with complete(proxied, job_id, script(token_ms=5)):
        wait_until(lambda: progress(proxied, job_id) > 30, what="some tokens")
    receipt = cast(dict[str, Any], ended_state(proxied, job_id)["receipt"])
    assert receipt["reason"] == "disconnect"
    assert receipt["stopped_ms"] <= 500  # One trial; distributions are elsewhere.


@pytest.mark.parametrize(
    ("ask", "prompt", "phase"),
    [
        (execute, script(token_ms=5), "decode"),
        (execute, script(4000, row_ms=5), "prefill"),
        (complete, script(token_ms=5), "decode"),
    ],
    ids=["stream in decode", "stream in prefill", "whole answer"],
)
def test_behind_a_proxy_that_hides_disconnects_a_job_continues_until_it_is_cancelled(
    hidden: RunningWorker,
    ask: Callable[[RunningWorker, str, str], socket.socket],
    prompt: str,
    phase: str,
) -> None:
    """The worker computes without a reader until `POST /cancel` through the same proxy stops the job."""
    job_id = fresh_id("hidden")
    with ask(hidden, job_id, prompt):
        wait_until(lambda: progress(hidden, job_id) > 30, what="some progress")
    seen = progress(hidden, job_id)
    wait_until(lambda: progress(hidden, job_id) > seen + 50, what="progress without a client")
    assert hidden.record(job_id)["state"] == "running"

    answer = hidden.cancel(job_id)
    assert (answer.status_code, answer.json()) == (202, {"status": "cancelling", "job_id": job_id})
    receipt = cast(dict[str, Any], ended_state(hidden, job_id)["receipt"])
    assert (receipt["reason"], receipt["phase"]) == ("client", phase)
    assert receipt["stopped_ms"] <= 500  # One trial; distributions are elsewhere.
    assert receipt["kv_cells_after"] == 0


def test_a_cancel_comes_through_and_so_does_what_it_did(proxied: RunningWorker) -> None:
    """202, or the receipt with `Prefer: wait`; the stream has one terminal event."""
    stream = proxied.execute(fresh_id(), script(token_ms=5)).tokens_seen(2)
    answer = proxied.cancel(stream.job_id, Prefer="wait=5")
    assert answer.status_code == 200
    assert answer.json()["receipt"]["kv_cells_after"] == 0
    error = reported(stream)
    assert (error["code"], error["reason"]) == ("CANCELLED", "client")
    stream.assert_whole()
    assert proxied.cancel(stream.job_id).status_code == 202


def test_correlation_ids_come_through_both_ways(worker: RunningWorker, proxied: RunningWorker) -> None:
    """The client's id is in the log events and in the response; so are ids that the worker made."""
    stream = Stream(
        proxied, {"job_id": fresh_id(), "prompt": "x", "max_tokens": 1}, {"X-Correlation-Id": "mine-7"}
    )
    reported(stream)
    assert stream.headers["x-correlation-id"] == "mine-7"
    assert stream.headers["x-job-id"] == stream.job_id
    worker.narrated("execute_end", job_id=stream.job_id, correlation_id="mine-7")
    assert proxied.client.get("/jobs").headers["x-correlation-id"]


def test_a_stream_is_picked_up_again_after_the_last_event_that_was_seen(
    worker: RunningWorker, proxied: RunningWorker
) -> None:
    """Its client disconnects, the job continues, and the reader gets the rest without a gap."""
    stream = proxied.execute(fresh_id(), script(token_ms=5), max_tokens=60, on_disconnect="continue")
    stream.tokens_seen(5).leave()
    stream.finished()
    last = stream.events[-1]
    with proxied.client.sse(f"/jobs/{stream.job_id}/events", headers={"Last-Event-ID": last.id}) as source:
        rest = [(event.id, event.event) for event in source]
    assert [id_ for id_, _ in rest] == [f"{last.incarnation}.{n}" for n in range(last.number + 1, 62)]
    assert rest[-1][1] == "end"
    assert worker.record(stream.job_id)["state"] == "completed"


def test_a_further_nginx_is_configured_not_to_gather_either(proxied: RunningWorker) -> None:
    """nginx keeps `X-Accel-Buffering` for itself unless the configuration passes it on."""
    stream = proxied.execute(fresh_id(), "x", max_tokens=1)
    reported(stream)
    assert stream.headers["x-accel-buffering"] == "no"


def test_a_body_of_1_mib_comes_through_and_a_larger_one_is_refused_as_the_worker_does(
    worker: RunningWorker, proxied: RunningWorker
) -> None:
    """The proxy has the worker's limit, and the refusal has the worker's wording."""
    largest = json.dumps({"job_id": "x", "nonsense": ""})
    largest = largest.replace('""', '"' + "x" * ((1 << 20) - len(largest)) + '"')
    answer = proxied.client.post("/cancel", content=largest)
    assert (answer.status_code, answer.json()["job_id"]) == (202, "x")
    answer, own = (asked.client.post("/cancel", content=largest + " ") for asked in (proxied, worker))
    assert answer.status_code == own.status_code == 413
    assert answer.headers["content-type"] == own.headers["content-type"]
    assert answer.json() == own.json()


def test_nobody_shuts_the_worker_down_from_outside(worker: RunningWorker, proxied: RunningWorker) -> None:
    """The proxy blocks `/shutdown`, even with an operator's key."""
    assert proxied.client.post("/shutdown").status_code == 403
    assert worker.health()["status"] == "healthy"


def test_a_foreign_name_needs_keys(proxied: RunningWorker, tmp_path: Path) -> None:
    """Without keys, a worker behind a proxy serves only requests for this machine's names."""
    named = {"Host": "llm.example"}
    answer = proxied.client.get("/jobs", headers=named)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Host")
    keys = tmp_path / "api-keys"
    keys.write_text("a-key-0123456789abcdef\n")
    with running_worker(api_key_file=keys) as guarded, behind(ONE, guarded) as front:
        assert front.client.get("/jobs", headers=named).status_code == 401
        key = {"Authorization": "Bearer a-key-0123456789abcdef"}
        assert front.client.get("/jobs", headers={**named, **key}).status_code == 200


def test_a_stream_whose_worker_died_does_not_look_ended() -> None:
    """The connection breaks without the final chunk."""
    with running_worker() as mortal, behind(ONE, mortal) as front:
        with execute(front, fresh_id(), script(token_ms=5, text="whole")) as connection:
            assert LAST_CHUNK in read_all(connection, until=LAST_CHUNK)
        broken = fresh_id()
        with execute(front, broken, script(token_ms=5)) as connection:
            wait_until(lambda: progress(front, broken) > 20, what="some tokens")
            mortal.process.kill()
            received = read_all(connection)
        assert b"event: token" in received
        assert LAST_CHUNK not in received


@pytest.fixture
def pair() -> Iterator[tuple[RunningWorker, RunningWorker, RunningWorker]]:
    """Two workers, and nginx in front of both."""
    with (
        running_worker(drain_sec=10) as first,
        running_worker() as second,
        behind(SEVERAL, first, second) as front,
    ):
        yield first, second, front


def knows(worker: RunningWorker, job_id: str) -> bool:
    """Whether this worker has the job."""
    return worker.client.get(f"/jobs/{job_id}").status_code == 200


def test_of_several_workers_the_right_one_is_found(
    pair: tuple[RunningWorker, RunningWorker, RunningWorker],
) -> None:
    """Jobs are distributed; records, streams and cancels reach the worker with the job, also for OpenAI's responses."""
    first, second, front = pair
    streams = [front.execute(fresh_id(), script(token_ms=20)).tokens_seen(1) for _ in range(6)]
    at_first = [stream.job_id for stream in streams if knows(first, stream.job_id)]
    at_second = [stream.job_id for stream in streams if knows(second, stream.job_id)]
    assert sorted(at_first + at_second) == sorted(stream.job_id for stream in streams)
    assert len(at_first) == len(at_second) == 3
    for stream in streams:
        with front.client.sse(f"/jobs/{stream.job_id}/events") as source:
            assert next(iter(source)).event == "started"
    for stream in streams:
        assert front.cancel(stream.job_id).status_code == 202
        assert reported(stream)["reason"] == "client"

    assert front.client.get("/jobs").json()["jobs"]
    for _ in range(4):
        body = {"model": "scripted", "input": script(token_ms=20), "background": True}
        response = front.client.post("/v1/responses", json=body).json()["id"]
        assert front.client.get(f"/v1/responses/{response}").json()["status"] == "in_progress"
        for _ in range(2):
            cancelled = front.client.post(f"/v1/responses/{response}/cancel")
            assert cancelled.json()["status"] == "cancelled"
    assert front.client.get("/jobs/unknown").status_code == 404


def test_while_one_of_several_drains_no_job_is_refused_and_its_own_can_still_be_cancelled(
    pair: tuple[RunningWorker, RunningWorker, RunningWorker],
) -> None:
    """In a rollout, the other worker gets the jobs that the draining one refuses, and cancels reach both."""
    first, second, front = pair
    running = first.execute(fresh_id("old"), script(token_ms=20)).tokens_seen(1)
    first.process.send_signal(signal.SIGTERM)
    wait_until(lambda: first.health()["status"] == "draining", what="draining")
    fresh = [front.execute(fresh_id("new"), script(token_ms=5), max_tokens=5) for _ in range(4)]
    for stream in fresh:
        assert reported(stream)["stop_reason"] == "length"
        assert knows(second, stream.job_id)
    assert front.cancel(running.job_id).status_code == 202
    assert reported(running)["reason"] == "client"
    wait_until(lambda: first.process.poll() is not None, what="the end of the drain")
    assert first.process.returncode == 0
    assert reported(front.execute(fresh_id("newer"), "x", max_tokens=1))["stop_reason"] == "length"


def test_what_a_full_worker_refuses_is_offered_to_the_next(worker: RunningWorker) -> None:
    """No client gets 429 while a worker has room."""
    with running_worker(parallel=1, max_queue=1) as full, behind(SEVERAL, full, worker) as front:
        running = full.execute(fresh_id("running"), script(token_ms=20)).tokens_seen(1)
        waiting = queued(full, full.execute(fresh_id("waiting")))
        assert full.execute(fresh_id()).finished().status == 429
        for _ in range(4):
            stream = front.execute(fresh_id("offered"), "x", max_tokens=1)
            assert reported(stream)["stop_reason"] == "length"
            assert knows(worker, stream.job_id)
        for stream in (running, waiting):
            assert front.cancel(stream.job_id).status_code == 202
            assert reported(stream)["reason"] == "client"
