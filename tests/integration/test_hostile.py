"""Hostile clients: their requests are refused in the usual shape or served, and leave nothing behind (G9, G10)."""

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.helpers import at_rest, fresh_id, raw_body, raw_exchange, script
from worker_orcd import narration
from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

CODES = {code.value for code in ErrorCode}
MAX_BODY = 1 << 20


@pytest.fixture(scope="module")
def _target() -> Iterator[RunningWorker]:
    with running_worker(max_tokens_out=4) as target:
        yield target


@pytest.fixture
def target(_target: RunningWorker) -> Iterator[RunningWorker]:
    """A worker that is at rest afterwards, holds no more descriptors than before, and has logged only JSON."""
    before = descriptors(_target)
    yield _target
    at_rest(_target)
    wait_until(lambda: descriptors(_target) <= before + 1, within_sec=15, what="descriptors given back")
    for line in _target.log.read_text().splitlines():
        reported = json.loads(line)
        assert "traceback" not in reported, reported
        assert reported["action"] in {action.name for action in narration.ACTIONS}, reported


def descriptors(worker: RunningWorker) -> int:
    """The descriptors of the front and its engine."""
    return sum(psutil.Process(pid).num_fds() for pid in (worker.process.pid, worker.engine_pid))


def post(path: str, body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    """A request as it goes over the wire; closes the connection."""
    head = [
        f"POST {path} HTTP/1.1".encode(),
        b"Host: localhost",
        b"Connection: close",
        f"Content-Length: {len(body) if length is None else length}".encode(),
        *headers,
    ]
    return b"\r\n".join([*head, b"", body])


def refusal(answer: bytes, status: int = 400) -> dict[str, Any]:
    """The error in an answer, which must have that status and the usual shape."""
    got, body = raw_body(answer)
    assert got == status, answer
    error: dict[str, Any] = json.loads(body)["error"]
    assert error["code"] in CODES
    assert isinstance(error["message"], str)
    assert isinstance(error["retriable"], bool)
    return error


def field(name: str, value: str) -> bytes:
    """An execute body whose `name` is this JSON text."""
    fields = {"job_id": '"hostile"', "prompt": '"x"', "max_tokens": "1", name: value}
    return ("{" + ", ".join(f'"{key}": {text}' for key, text in fields.items()) + "}").encode()


BAD_BODIES = {
    "nothing": b"",
    "white space": b" \r\n\t ",
    "half of an object": b'{"job_id": "x", "prompt": "',
    "two objects": b'{"job_id": "x"} {"job_id": "y"}',
    "a comment": b'{"job_id": "x" /* hm */}',
    "100,000 open brackets": b"[" * 100_000,
    "100,000 objects in each other": b'{"a":' * 100_000,
    "deep in a field": field("prompt", "[" * 50_000 + "]" * 50_000),
    "a number of 100,000 digits": field("max_tokens", "9" * 100_000),
    "a lone surrogate": field("prompt", '"\\ud800"'),
    "half a surrogate pair in an id": field("job_id", '"\\udfff"'),
    "invalid UTF-8": field("prompt", '"x"').replace(b'"x"', b'"\xff\xfe"'),
    "overlong UTF-8": field("prompt", '"x"').replace(b'"x"', b'"\xc0\xaf"'),
    "UTF-16": '{"job_id": "x", "prompt": "y"}'.encode("utf-16"),
    "a gzip": b"\x1f\x8b\x08\x00" + bytes(100),
    "a line feed in an id": field("job_id", '"a\\nevent: end"'),
    "a zero byte in an id": field("job_id", '"a\\u0000b"'),
    "a homoglyph in an id": field("job_id", '"test-123\\u200b"'),
    "a path in an id": field("job_id", '"../../etc/passwd"'),
    "an id of 100,000 characters": field("job_id", '"' + "a" * 100_000 + '"'),
    "a control character in a group": field("group", '"g\\u001b[2J"'),
    "an array": b"[]",
    "a string": b'"job_id"',
    "null": b"null",
    "null for an id": field("job_id", "null"),
}


BAD_FIELDS = {
    "a number beyond floats": field("temperature", "1e999"),
    "not a number": field("temperature", "NaN"),
    "infinity": field("top_p", "Infinity"),
    "a negative zero of tokens": field("max_tokens", "-0"),
    "true for a number": field("max_tokens", "true"),
    "a string for a number": field("seed", '"7"'),
    "a seed beyond 64 bits": field("seed", str(2**64)),
    "prototype pollution": field("__proto__", "{}"),
    "a name that is code": field('x\\"}}\\n{{', "1"),
    "a thousand unknown fields": (
        b'{"job_id": "x", "prompt": "y", ' + b", ".join(b'"f%d": %d' % (n, n) for n in range(1000)) + b"}"
    ),
    "a name of 100,000 characters": field("n" * 100_000, "1"),
    "too many stop strings": field("stop", json.dumps(["a"] * 17)),
    "nothing to stop at": field("stop", '[""]'),
    "a list of lists": field("stop", "[[]]"),
}
"""Invalid only in fields that a cancel ignores."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(
            pytest.param("/execute", body, id=f"execute-{name}")
            for name, body in (BAD_BODIES | BAD_FIELDS).items()
        ),
        *(pytest.param("/cancel", body, id=f"cancel-{name}") for name, body in BAD_BODIES.items()),
    ],
)
def test_a_hostile_body_is_refused(target: RunningWorker, path: str, body: bytes) -> None:
    """With 400; the message has the reason, and quotes at most a piece of the body."""
    error = refusal(raw_exchange(target, post(path, body)))
    assert error["code"] == "INVALID_REQUEST"
    assert len(error["message"]) < 1000
    assert error["message"].isprintable()


def test_of_two_equal_names_the_last_counts_and_the_job_is_one(target: RunningWorker) -> None:
    """As in common JSON parsers; no job is started under the other name."""
    first, last = fresh_id("first"), fresh_id("last")
    body = f'{{"job_id": "{first}", "prompt": "x", "job_id": "{last}", "max_tokens": 1}}'.encode()
    status, stream = raw_body(raw_exchange(target, post("/execute", body)))
    assert status == 200
    assert stream.count(b"event: started") == 1
    assert last.encode() in stream
    assert target.client.get(f"/jobs/{first}").status_code == 404


TEXTS = {
    "frames of our own": "\n\nevent: end\ndata: {}\n\nid: 99\r\n\r\n",
    "carriage returns": "a\rb\r\nc",
    "line separators": "a\u2028b\u2029c\u0085d",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x9b",
    "right to left": "\u202eabc\u202c\u2066",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "combining marks": "a" + "\u0301" * 500,
    "a family": "👨‍👩‍👧‍👦" * 20,
    "JSON": '"}]}\\',
    "HTML": "<script>alert(1)</script>",
    "special tokens": "<|im_start|>system\n<|im_end|>",
}


@pytest.mark.parametrize("said", TEXTS.values(), ids=TEXTS.keys())
def test_no_text_that_a_model_says_forges_a_frame(target: RunningWorker, said: str) -> None:
    """The text arrives unchanged in well-formed events, also next to a stop string."""
    job_id = fresh_id("text")
    prompt = json.dumps({"text": said[:60], "token_ms": 0})
    body = json.dumps({"job_id": job_id, "prompt": prompt, "max_tokens": 4, "stop": ["§§"]}).encode()
    status, stream = raw_body(raw_exchange(target, post("/execute", body)))
    assert status == 200
    frames = dechunked(stream).decode().split("\n\n")
    assert frames[-1] == ""
    names = []
    for frame in frames[:-1]:
        name, data, number = frame.split("\n")
        names.append(name.removeprefix("event: "))
        json.loads(data.removeprefix("data: "))
        assert number.rpartition(".")[2] == str(len(names) - 1)
    assert names[0] == "started"
    assert names[-1] == "end"
    assert set(names[1:-1]) == {"token"}
    assert "\r" not in dechunked(stream).decode()


def dechunked(body: bytes) -> bytes:
    """A chunked body's content."""
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


HEADERS = {
    "an id of 10,000 characters": b"X-Correlation-Id: " + b"a" * 10_000,
    "an id with a space": b"X-Correlation-Id: a b",
    "an id with a tab": b"X-Correlation-Id: a\tb",
    "an id that is not ASCII": "X-Correlation-Id: caf\u00e9".encode(),
    "an id that is code": b"X-Correlation-Id: %0d%0aSet-Cookie:x=1",
    "a thousand ids": b"\r\n".join(b"X-Correlation-Id: a%d,b" % n for n in range(1000)),
    "a false trace": b"traceparent: 00-zz-yy-01",
    "a Prefer without sense": b"Prefer: ;;;=,,wait",
    "a Content-Type of its own": b"Content-Type: multipart/form-data; boundary=\x80",
    "an odd Accept": b"Accept: ;q=x, */*;q=\xff",
    "an unfinished Range": b"Range: bytes=",
    "cookies": b"Cookie: " + b"a=b; " * 5000,
    "a name for a forwarding proxy": b"X-Forwarded-For: evil\r\nForwarded: for=evil",
    "an override of the method": b"X-HTTP-Method-Override: DELETE",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_no_header_does_harm(target: RunningWorker, header: bytes) -> None:
    """A cancel with this header still works; the correlation id is the client's only if it is valid."""
    answer = raw_exchange(target, post("/cancel", CANCEL, header))
    status, body = raw_body(answer)
    assert status == 202, answer
    assert json.loads(body) == {"status": "cancelling", "job_id": "nobody"}
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.count(b"x-correlation-id:") == 1
    assert b"set-cookie" not in head.replace(b"%0d%0aset-cookie", b"")


CANCEL = b'{"job_id": "nobody"}'
CHUNKED = (
    b"POST /cancel HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)

WIRES = {
    "no request at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a length that is negative": post("/cancel", CANCEL, length=-1),
    "two lengths": post("/cancel", CANCEL, b"Content-Length: 3"),
    "length and chunks": post(
        "/cancel", b"%x\r\n%s\r\n0\r\n\r\n" % (len(CANCEL), CANCEL), b"Transfer-Encoding: chunked"
    ),
    "an unknown transfer coding": post("/cancel", CANCEL, b"Transfer-Encoding: rot13"),
    "a chunk of negative size": CHUNKED + b"-%x\r\n%s\r\n0\r\n\r\n" % (len(CANCEL), CANCEL),
    "a chunk of endless size": (CHUNKED + b"f" * 40 + b"\r\n" + CANCEL),
    "a folded header": post("/cancel", CANCEL, b"X-A: b\r\n c: d"),
    "a header without a name": post("/cancel", CANCEL, b": b"),
    "a space before the colon": post("/cancel", CANCEL, b"X-A : b"),
    "a zero byte in a header": post("/cancel", CANCEL, b"X-A: a\x00b"),
    "a delete character in a header": post("/cancel", CANCEL, b"X-A: a\x7f"),
    "no host": post("/cancel", CANCEL).replace(b"Host: localhost\r\n", b""),
    "two hosts": post("/cancel", CANCEL, b"Host: evil.example"),
}


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES.keys())
def test_bytes_that_are_no_proper_request_are_refused(target: RunningWorker, wire: bytes) -> None:
    """With 400 in the usual shape, even if they contain a valid cancel; the connection is closed."""
    refusal(raw_exchange(target, wire))


def test_who_wants_http_2_as_well_has_its_body_read(target: RunningWorker) -> None:
    """Java's client and `curl --http2` offer the upgrade with their first request, for example with a cancel."""
    stop_request = b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA"
    asked = post("/cancel", CANCEL, stop_request).replace(b"n: close", b"n: close, Upgrade, HTTP2-Settings")
    status, body = raw_body(raw_exchange(target, asked))
    assert (status, json.loads(body)) == (202, {"status": "cancelling", "job_id": "nobody"})


def test_a_request_may_come_in_pieces_of_any_size(target: RunningWorker) -> None:
    """Also byte by byte: nothing is lost or mistaken for another protocol."""
    asked = post("/cancel", CANCEL, b"Upgrade: h2c").replace(b"n: close", b"n: close, Upgrade")
    with socket.create_connection(("127.0.0.1", target.port), timeout=10.0) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(asked)):
            connection.sendall(asked[place : place + 1])
            time.sleep(0.002)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    status, body = raw_body(answer)
    assert (status, json.loads(body)) == (202, {"status": "cancelling", "job_id": "nobody"})


def test_who_wants_another_protocol_is_answered_in_this_one(target: RunningWorker) -> None:
    """The worker ignores the upgrade and answers the request (RFC 9110, 7.8)."""
    asked = (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", target.port), timeout=10.0) as connection:
        connection.sendall(asked)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
    assert raw_body(answer) == (200, b'{"status":"alive"}')
    assert b"x-correlation-id: " in answer


@pytest.mark.parametrize(
    "line",
    [
        "GET /jobs/%00 HTTP/1.1",
        "GET /jobs/%0d%0aX:y HTTP/1.1",
        "GET /jobs/%ff%fe HTTP/1.1",
        "GET /jobs/..%2f..%2fetc%2fpasswd HTTP/1.1",
        "GET /jobs/a/events/ HTTP/1.1",
        "GET //jobs HTTP/1.1",
        "GET /static/../../../../etc/passwd HTTP/1.1",
        "GET /jobs?limit=-1 HTTP/1.1",
        "GET /jobs?limit=99999999999999999999 HTTP/1.1",
        "GET /jobs?limit=%D9%A3 HTTP/1.1",
        f"GET /jobs/{'a' * 20_000} HTTP/1.1",
        "DELETE /jobs/x HTTP/1.1",
        "TRACE /cancel HTTP/1.1",
        "CONNECT localhost:1 HTTP/1.1",
        "GET /execute HTTP/1.1",
        "PUT /cancel HTTP/1.1",
        "OPTIONS * HTTP/1.1",
    ],
)
def test_no_address_finds_what_is_not_there(target: RunningWorker, line: str) -> None:
    """4xx in the usual shape, and no content of this machine's files."""
    request = f"{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    answer = raw_exchange(target, request)
    status, body = raw_body(answer)
    assert 400 <= status < 500, answer
    assert json.loads(body)["error"]["code"] in CODES
    assert b"root:" not in body


def test_last_event_ids_without_sense_are_refused(target: RunningWorker) -> None:
    """The error names the header."""
    stream = target.execute(fresh_id("last"), max_tokens=2).finished()
    for given in ["-1", "9" * 19, "NaN", "\u00b2", "x-1.\u00b2", "x-\u0661.1"]:
        answer = target.client.get(
            f"/jobs/{stream.job_id}/events", headers={b"Last-Event-ID": given.encode()}
        )
        assert answer.status_code == 400, given
        assert answer.json()["error"]["param"] == "Last-Event-ID"


def test_a_body_that_never_stops_is_refused_when_it_is_too_large(target: RunningWorker) -> None:
    """Chunk after chunk, without a length."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = b"POST /execute HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = raw_exchange(target, head + chunk * (MAX_BODY // 0x10000 + 1) + b"0\r\n\r\n")
    assert refusal(answer, 413)["code"] == "INVALID_REQUEST"


def test_a_crowd_shuts_out_nobody_who_wants_to_stop_a_job() -> None:
    """The last connections are for cancels and health; others get a 429."""
    with running_worker() as crowded:
        stream = crowded.execute(fresh_id(), script(token_ms=5)).tokens_seen(1)
        descriptors_for_64 = (128, 128)
        resource.prlimit(crowded.process.pid, resource.RLIMIT_NOFILE, descriptors_for_64)

        def more() -> bytes:
            body = {"job_id": fresh_id(), "prompt": script(token_ms=5), "template": "none"}
            return post("/execute", json.dumps(body).encode())

        with contextlib.ExitStack() as crowd:

            def another() -> bytes:
                one = crowd.enter_context(socket.create_connection(("127.0.0.1", crowded.port), timeout=10))
                one.sendall(more())
                return one.recv(12)

            came = list(iter(another, b"HTTP/1.1 429"))
            assert 50 < len(came) < 64
            livez = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert refusal(raw_exchange(crowded, more()), 429)["code"] == "QUEUE_FULL"
            assert raw_body(raw_exchange(crowded, livez))[0] == 200
            body = json.dumps({"job_id": stream.job_id}).encode()
            assert raw_body(raw_exchange(crowded, post("/cancel", body)))[0] == 202
            assert stream.finished().events[-1].data["code"] == "CANCELLED"


def test_requests_in_a_row_without_waiting_are_each_answered(target: RunningWorker) -> None:
    """Two hundred pipelined cancels."""
    one = post("/cancel", b'{"job_id": "nobody"}').replace(b"Connection: close\r\n", b"")
    answer = raw_exchange(target, one * 200 + post("/cancel", b'{"job_id": "nobody"}'))
    assert answer.count(b"HTTP/1.1 202 ") == 201
