"""A client that closes its side of the connection after its request gets its answer; one that leaves is noticed as
promptly as ever (contract, 2 and 4)."""

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPResponse
from typing import Any, cast

import pytest

from tests.helpers import assert_prompt, ended_state, fresh_id, receipt_of, script, undisturbed, wall
from worker_orcd.testing.harness import RunningWorker, wait_until
from worker_orcd.testing.trials import stopped_in_time

Fields = dict[str, Any]
Speak = Callable[[Fields], Fields]


def execute(fields: Fields) -> Fields:
    """A job of `POST /execute`."""
    return {"path": "/execute", **fields}


def completion(fields: Fields) -> Fields:
    """A job of OpenAI's API with a complete answer."""
    return {"path": "/v1/completions", "temperature": 0, **fields}


def completion_streamed(fields: Fields) -> Fields:
    """A job of OpenAI's API with a stream."""
    return completion({"stream": True, **fields})


SPEAK = [execute, completion, completion_streamed]
VERSIONS = ["1.1", "1.0"]


@contextmanager
def asking(worker: RunningWorker, fields: Fields, version: str = "1.1") -> Iterator[socket.socket]:
    """A connection on which a job was asked for."""
    path, job_id = fields.pop("path"), fields["job_id"]
    body = json.dumps(fields if path == "/execute" else {**fields, "job_id": None}).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\nX-Job-Id: {job_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60.0) as connection:
        connection.sendall(head.encode() + body)
        yield connection


def answer_on(connection: socket.socket, method: str = "POST") -> tuple[HTTPResponse, str]:
    """The one answer on a connection, and its body."""
    answer = HTTPResponse(connection, method=method)
    answer.begin()
    return answer, answer.read().decode()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("speak", SPEAK)
def test_a_client_that_half_closes_gets_its_whole_answer(
    worker: RunningWorker, speak: Speak, version: str
) -> None:
    """The whole answer arrives, also if it takes longer than several probes."""
    fields = speak({"job_id": fresh_id("half"), "prompt": script(token_ms=40), "max_tokens": 20})
    fields["temperature"] = 0
    with asking(worker, fields, version) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer, body = answer_on(connection)
        assert connection.recv(1) == b"", "the worker closes the connection after the answer"
    assert answer.status == 200
    if speak is completion:
        assert json.loads(body)["choices"][0]["text"] == undisturbed(20)
    else:
        assert "w19 " in body
        assert "\n: " in body, "comments were sent between events"
    assert ended_state(worker, fields["job_id"])["state"] == "completed"


def test_a_job_that_waits_keeps_waiting_for_a_client_that_half_closed(narrow: RunningWorker) -> None:
    """Before the job starts, the worker sends only probes."""
    running = narrow.execute(fresh_id("running"), script(token_ms=20)).started()
    with asking(narrow, execute({"job_id": fresh_id("half"), "prompt": "a", "max_tokens": 3})) as connection:
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while received.count(b":") < 20:  # Headers, then some comments.
            received += connection.recv(65536)
        assert b"event:" not in received
        narrow.cancel(running.job_id)
        while chunk := connection.recv(65536):
            received += chunk
    assert b"event: end" in received
    running.finished()


def test_a_refusal_and_every_other_answer_comes_too(worker: RunningWorker) -> None:
    """Immediate answers arrive too, and in order for pipelined requests."""
    ask = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60.0) as connection:
        connection.sendall(ask * 3 + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert b"HTTP/1.1 404" in received


def test_a_client_that_closes_in_the_middle_of_its_request_gets_nothing(worker: RunningWorker) -> None:
    """There is no whole request to answer."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60.0) as connection:
        connection.sendall(b"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b""


def leave_ms(worker: RunningWorker, job_id: str, leave: Callable[[], object]) -> float:
    """Milliseconds from a client's disconnect to the end of its job, by the job's record."""
    left_at = time.time()
    leave()
    receipt_of(worker, job_id, "disconnect")
    record = worker.record(job_id)
    ended_at = wall(cast(str, record["accepted_at"])) + cast(float, record["ended_ms"]) / 1000
    return (ended_at - left_at) * 1000


def counted(worker: RunningWorker, job_id: str) -> None:
    """Wait until the worker knows a job and its prompt's length."""
    wait_until(lambda: worker.record(job_id).get("prompt_tokens"), what="a job")


def decoding(worker: RunningWorker, job_id: str) -> None:
    """Wait until a job has some tokens."""
    wait_until(lambda: worker.record(job_id).get("tokens_out"), what="tokens")


def test_a_client_that_closes_is_noticed_promptly(worker: RunningWorker) -> None:
    """Whether its kernel sends a reset, because something was not read, or only a FIN: the same one as a client that
    half-closes sends.

    Twelve ways, three times each, judged together: one way that is noticed late is 3 of 36, more than may be late.
    """
    took_ms = []
    for unread, version, speak in [*itertools.product([True, False], VERSIONS, SPEAK)] * 3:
        job_id = fresh_id("closes")
        fields = speak({"job_id": job_id, "prompt": script(2000, row_ms=2)})
        with asking(worker, fields, version) as connection:
            counted(worker, job_id)
            if not unread and speak is not completion:
                connection.setblocking(False)  # So far nothing but the head and `started` has come.
                wait_until(partial(_read_head, connection), what="the head")
            took_ms.append(leave_ms(worker, job_id, connection.close))
    assert_prompt(took_ms)


def _read_head(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(65536))
    except BlockingIOError:
        return False


def test_a_client_that_half_closes_and_then_leaves_is_noticed_too(worker: RunningWorker) -> None:
    """Its second close sends nothing: only the answer to a later probe shows it. Of a stream there are always more
    probes; for a whole answer their number is limited, and this leaves after the first few."""
    took_ms = []
    for speak in SPEAK * 7:
        job_id = fresh_id("closes")
        fields = speak({"job_id": job_id, "prompt": script(token_ms=500), "max_tokens": 100})
        with asking(worker, fields) as connection:
            decoding(worker, job_id)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536)
            took_ms.append(leave_ms(worker, job_id, connection.close))
    # Each waits for the next probe, so that half of them take up to the 100 ms.
    stopped_in_time("left", took_ms, bound_ms=300)
