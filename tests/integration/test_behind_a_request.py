"""Bytes behind a request that are no request, or not a whole one, do not hurt the answer in progress (G2)."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.helpers import ended_state, fresh_id, raw_body, raw_exchange, script
from worker_orcd.testing.harness import RunningWorker, running_worker

BEHIND = {
    "a space": b" ",
    "a NUL": b"\0",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01",
    "a part of the next request": b"POST /ca",
    "a part of the next body": b"POST /cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
    "two lengths": b"POST /cancel HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a large head": b"POST /cancel HTTP/1.1\r\nX-Large: " + b"a" * 70_000,
}


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningWorker]:
    """Its clients have half a second for a request."""
    with running_worker(env={"WORKER_ORCD_TEST_REQUEST_SEC": "0.5"}) as worker:
        yield worker


@pytest.mark.parametrize("closes", [False, True], ids=["open", "half-closed"])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "in the middle"])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
def test_the_stream_goes_on_to_its_end(
    impatient: RunningWorker, behind: bytes, later: bool, closes: bool
) -> None:
    """Then the connection is closed. The client may have closed its side before."""
    job_id = fresh_id("behind")
    body = json.dumps({"job_id": job_id, "prompt": script(token_ms=25), "max_tokens": 60}).encode()
    asked = b"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=10.0) as connection:
        connection.sendall(asked if later else asked + behind)
        if later:
            time.sleep(0.3)
            connection.sendall(behind)
        if closes:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 ") == 1
    assert raw_body(answer)[0] == 200
    assert answer.count(b"event: token") == 60
    assert answer.count(b"event: end") == 1
    assert ended_state(impatient, job_id)["state"] == "completed"


def test_a_request_that_begins_during_an_answer_has_its_time_from_the_answers_end(
    impatient: RunningWorker,
) -> None:
    """All of it."""
    body = json.dumps({"job_id": fresh_id(), "prompt": script(token_ms=25), "max_tokens": 30}).encode()
    asked = b"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=10.0) as connection:
        connection.sendall(asked + b"GET /livez HTTP/1.1\r\nHo")
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += connection.recv(65536)
        time.sleep(0.3)
        connection.sendall(b"st: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            chunk = connection.recv(65536)
            assert chunk, "dropped"
            answer += chunk
    assert raw_body(answer) == (200, b'{"status":"alive"}')


def test_white_space_behind_a_header_is_not_part_of_it(impatient: RunningWorker) -> None:
    """As HTTP has it (RFC 9110, 5.5)."""
    asked = (
        b"GET /livez HTTP/1.1\r\nHost: localhost \r\nX-Correlation-Id:  mine \t \r\nConnection: close\r\n\r\n"
    )
    answer = raw_exchange(impatient, asked)
    assert raw_body(answer)[0] == 200
    assert b"\r\nx-correlation-id: mine\r\n" in answer.lower()


def test_what_the_parser_refuses_has_the_clients_correlation_id(impatient: RunningWorker) -> None:
    """If its header came before the fault; not that of an earlier request."""
    faulty = b"POST /cancel HTTP/1.1\r\nHost: a\r\n%bContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    answer = raw_exchange(impatient, faulty % b"X-Correlation-Id: mine\r\n")
    assert raw_body(answer)[0] == 400
    assert b"\r\nx-correlation-id: mine\r\n" in answer.lower()
    earlier = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Correlation-Id: earlier\r\n\r\n"
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=10.0) as connection:
        connection.sendall(earlier)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert b"earlier" in answer
        connection.sendall(b"\0")
        refused = b""
        while chunk := connection.recv(65536):
            refused += chunk
    assert raw_body(refused)[0] == 400
    assert b"earlier" not in refused
