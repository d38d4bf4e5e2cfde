"""Who may use the worker (G9), and clients that waste its resources (G10)."""

import contextlib
import json
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.helpers import fresh_id, raw_body, raw_exchange, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

ANNA, BERTA = "anna-0123456789abcdef", "berta-0123456789abcdef"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keys."""
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# anna, berta\n{ANNA}\n\n{BERTA}\n")
    return path


@pytest.fixture(scope="module")
def guarded(key_file: Path) -> Iterator[RunningWorker]:
    """A worker with keys."""
    with running_worker(api_key_file=str(key_file)) as worker:
        yield worker


def by(key: str) -> dict[str, str]:
    """The headers of a client with this key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("operators", [False, True])
def test_a_shut_down_worker_was_asked_by_an_operator(tmp_path: Path, key_file: Path, operators: bool) -> None:
    """With keys, `POST /shutdown` and `/metrics` are refused to a tenant; reloads read operators' keys, too."""
    path = tmp_path / "operators"
    path.write_text("olga-0123456789abcdef\n")
    path.chmod(0o600)
    olga = by("olga-0123456789abcdef")
    options: dict[str, Any] = {"operator_key_file": str(path)} if operators else {}
    with running_worker(api_key_file=str(key_file), **options) as worker:
        for method, asked in (("POST", "/shutdown"), ("GET", "/metrics")):
            assert code(worker.client.request(method, asked, headers=by(ANNA))) == (403, "UNAUTHORIZED")
        if not operators:
            assert worker.client.get("/metrics", headers=olga).status_code == 401
            return
        assert "worker_jobs_running" in worker.client.get("/metrics", headers=olga).text
        assert (
            worker.narrated("startup", api_keys=3)["level"] == "WARN"
        )  # Everybody can read the file of the tenants.
        path.chmod(0o622)
        worker.process.send_signal(signal.SIGHUP)
        worker.narrated("error", code="INVALID_REQUEST", level="ERROR")
        path.chmod(0o600)
        path.write_text("otto-0123456789abcdef\n")
        worker.process.send_signal(signal.SIGHUP)
        otto = by("otto-0123456789abcdef")
        wait_until(lambda: worker.client.get("/metrics", headers=otto).status_code == 200, what="the new key")
        assert worker.client.get("/metrics", headers=olga).status_code == 401
        assert worker.client.post("/shutdown", headers=otto).status_code == 202
        assert worker.process.wait(15) == 0


def code(answer: Any) -> tuple[int, str]:
    """Status and error code."""
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/execute"),
        ("POST", "/cancel"),
        ("POST", "/shutdown"),
        ("GET", "/jobs"),
        ("GET", "/jobs/x"),
        ("GET", "/jobs/x/events"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        by("wrong-0123456789abcdef"),
        by(ANNA[:-1]),
        by(ANNA + "x"),
        {"Authorization": f"Basic {ANNA}"},
        {"X-API-Key": "ä"},
    ],
)
def test_nothing_is_answered_without_a_key(
    guarded: RunningWorker, method: str, path: str, headers: dict[str, str]
) -> None:
    """401 in the usual shape, whatever the path, with a correlation id; the request has no effect."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    answer = guarded.client.request(method, path, json={"job_id": "x", "prompt": "x"}, headers=raw)
    assert code(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-correlation-id"]


def test_orchestrators_need_no_key(guarded: RunningWorker) -> None:
    """They check whether the worker is alive; jobs are not shown there."""
    for path in ("/health", "/livez", "/readyz"):
        assert guarded.client.get(path).status_code == 200


def test_both_ways_of_showing_a_key_are_good(guarded: RunningWorker) -> None:
    """`Authorization: Bearer` and `X-API-Key`."""
    for headers in (by(ANNA), {"authorization": f"bearer {ANNA}"}, {"X-API-Key": ANNA}):
        assert guarded.client.get("/jobs", headers=headers).status_code == 200


def test_a_foreign_job_looks_exactly_like_an_unknown_one(guarded: RunningWorker) -> None:
    """In cancels, records, lists, streams and groups; another owner can use the same id (G9)."""
    job_id, unknown, group = fresh_id("secret"), fresh_id("unknown"), fresh_id("group")
    client = guarded.client
    body = {"job_id": job_id, "prompt": script(token_ms=5), "group": group}
    with client.stream("POST", "/execute", json=body, headers=by(ANNA)) as annas:
        lines = annas.iter_lines()
        next(lines)
        mine = client.get(f"/jobs/{job_id}", headers=by(ANNA)).json()
        assert mine["state"] == "running"
        for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events"):
            foreign = client.get(path, headers=by(BERTA))
            nothing = client.get(path.replace(job_id, unknown), headers=by(BERTA))
            assert (foreign.status_code, foreign.json()) == (nothing.status_code, nothing.json())
        assert client.get("/jobs", headers=by(BERTA)).json() == {"jobs": []}
        for name, value in (("job_id", job_id), ("group", group)):
            answer = client.post("/cancel", json={name: value}, headers=by(BERTA) | {"Prefer": "wait=1"})
            assert (answer.status_code, answer.json()) == (202, {"status": "cancelling", name: value})
        assert client.get(f"/jobs/{job_id}", headers=by(ANNA)).json()["state"] == "running"
        answer = client.post("/execute", json=body | {"max_tokens": 2}, headers=by(BERTA))
        assert answer.status_code == 200
        assert b"CANCELLED" in answer.content, "berta's own early cancel waits for berta's own job"
        assert client.get(f"/jobs/{job_id}", headers=by(ANNA)).json()["state"] == "running"
        assert client.post("/cancel", json={"job_id": job_id}, headers=by(ANNA)).status_code == 202
        assert "CANCELLED" in "".join(lines)
    assert ANNA not in guarded.log.read_text()


def test_keys_are_read_again_on_a_hangup_and_bad_ones_change_nothing(
    guarded: RunningWorker, key_file: Path
) -> None:
    """A file without keys is reported and the old keys stay; then a new key is accepted."""
    before = key_file.read_text()
    fresh = "carla-0123456789abcdef"
    key_file.write_text("short\n")
    guarded.process.send_signal(signal.SIGHUP)
    reported = guarded.narrated("error", code="INVALID_REQUEST", level="ERROR")
    assert "short" not in reported["human"]
    assert guarded.client.get("/jobs", headers=by(ANNA)).status_code == 200
    key_file.write_text(before + fresh + "\n")
    guarded.process.send_signal(signal.SIGHUP)
    wait_until(lambda: guarded.client.get("/jobs", headers=by(fresh)).status_code == 200, what="the new key")
    key_file.write_text(before)
    guarded.process.send_signal(signal.SIGHUP)
    wait_until(lambda: guarded.client.get("/jobs", headers=by(fresh)).status_code == 401, what="its end")


# Without keys.


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]", "10.0.0.1"]
)
def test_a_name_that_is_not_this_machines_is_refused(worker: RunningWorker, host: str) -> None:
    """DNS rebinding: a page's own name resolves to this machine."""
    answer = worker.client.get("/jobs", headers={"Host": host})
    assert code(answer) == (400, "INVALID_REQUEST")
    assert answer.json()["error"]["param"] == "Host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080"])
def test_this_machines_names_are_good(worker: RunningWorker, host: str) -> None:
    """With any port."""
    assert worker.client.get("/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "http://[", "http://[::1", "http://[x]", ""],
)
def test_another_sites_page_cannot_ask(worker: RunningWorker, origin: str) -> None:
    """Browsers send forms and simple `fetch`es without a preflight; the worker refuses them, without CORS headers."""
    answer = worker.client.post("/cancel", json={"job_id": "x"}, headers={"Origin": origin})
    assert code(answer) == (400, "INVALID_REQUEST")
    assert not any(name.startswith("access-control") for name in answer.headers)
    own = {"Origin": f"http://127.0.0.1:{worker.port}"}
    assert worker.client.post("/cancel", json={"job_id": "x"}, headers=own).status_code == 202


# Burdens.


def test_a_head_that_is_too_large_is_refused(worker: RunningWorker) -> None:
    """In the usual shape, and the worker's memory does not grow."""
    status, body = raw_body(
        raw_exchange(worker, b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)
    )
    assert status == 400
    assert b"larger than 65536 bytes" in body


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningWorker]:
    """A worker that waits half a second for the rest of a request."""
    with running_worker(env={"WORKER_ORCD_TEST_REQUEST_SEC": "0.5"}) as worker:
        yield worker


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"POST /cancel HTTP/1.1\r\nHost: loc",
        b"POST /cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"POST /can",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"POST /cancel HTTP/1.1\r\nHost: loc",
    ],
)
def test_a_client_that_does_not_finish_its_request_is_dropped(impatient: RunningWorker, part: bytes) -> None:
    """Slow loris: in head or body, of the first request or of a later one. Others are served meanwhile."""
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=10) as slow:
        answered = part.startswith(b"GET")
        head, rest = part[: part.find(b"\r\n\r\n") + 4], part[part.find(b"\r\n\r\n") + 4 :]
        if answered:
            slow.sendall(head)
            answer = b""
            while not answer.endswith(b"}"):
                answer += slow.recv(1000)
        slow.sendall(rest if answered else part)
        assert impatient.execute(fresh_id(), max_tokens=2).finished().events[-1].event == "end"
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1000) == b""
    assert "error" not in {event["action"] for event in impatient.narration()}


def test_a_client_that_leaves_in_the_middle_of_its_body_is_nobodys_fault(worker: RunningWorker) -> None:
    """It causes no error event."""
    before = len([event for event in worker.narration() if event["action"] == "error"])
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", worker.port)) as hasty:
            hasty.sendall(b"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\n{")
    assert worker.execute(fresh_id(), max_tokens=2).finished().events[-1].event == "end"
    assert len([event for event in worker.narration() if event["action"] == "error"]) == before


def test_connections_are_bounded() -> None:
    """Silent ones and those with a slow head make room; when all are busy, another one is refused in the one shape and
    closed, and what is busy is served (G10)."""
    with running_worker(env={"WORKER_ORCD_TEST_CONNECTIONS": "4"}) as worker, ExitStack() as stack:
        streams = [worker.execute(fresh_id(), script(token_ms=5)).tokens_seen(1) for _ in range(3)]
        connect = partial(socket.create_connection, ("127.0.0.1", worker.port), timeout=10)
        slow = [stack.enter_context(connect()) for _ in range(8)]
        for connection in slow:
            with contextlib.suppress(OSError):  # It may have made room already.
                connection.sendall(b"POST /cancel HTTP/1.1\r\nHost: loc")
        livez = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert raw_body(raw_exchange(worker, livez))[0] == 200
        closed = 0
        for connection in slow:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) == b""
            closed += 1
        assert closed == 8
        streams.append(worker.execute(fresh_id(), script(token_ms=5)).tokens_seen(1))
        answer = raw_exchange(worker, b"")
        status, body = raw_body(answer)
        assert (status, json.loads(body)["error"]["code"]) == (429, "QUEUE_FULL")
        assert b"retry-after: 1\r\n" in answer.lower()
        streams[0].leave()

        def cancelled(job_id: str) -> bool:
            body = json.dumps({"job_id": job_id}).encode()
            head = (
                b"POST /cancel HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            )
            try:
                return raw_body(raw_exchange(worker, head % len(body) + body))[0] == 202
            except ConnectionResetError:  # It was refused before its request was read.
                return False

        wait_until(lambda: cancelled(streams[1].job_id), what="a place")
        streams[1].finished().assert_whole()
        for stream in streams[2:]:
            assert stream.closed_at is None
            assert cancelled(stream.job_id)
            stream.finished().assert_whole()


def test_silent_strangers_shut_out_nobody_at_a_low_descriptor_limit(key_file: Path) -> None:
    """Four hundred connections that say nothing, or a byte now and then, while there are 256 descriptors: whoever has a
    key still runs and stops jobs, and health answers."""
    with running_worker(api_key_file=str(key_file), wait=False) as worker, ExitStack() as stack:
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (256, 256))
        worker.ready()
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (256, 256))
        for number in range(400):
            with contextlib.suppress(OSError):
                silent = stack.enter_context(socket.create_connection(("127.0.0.1", worker.port), timeout=10))
                if number % 2:
                    silent.sendall(b"GET /jobs HTTP/1.1\r\n")
        for _ in range(5):
            with httpx2.Client(base_url=worker.url, timeout=10, trust_env=False) as fresh:
                assert fresh.get("/health").status_code == 200
                job_id = fresh_id()
                body = {"job_id": job_id, "prompt": script(token_ms=5)}
                with fresh.stream("POST", "/execute", json=body, headers=by(ANNA)) as stream:
                    lines = stream.iter_lines()
                    next(lines)
                    with httpx2.Client(base_url=worker.url, timeout=10, trust_env=False) as other:
                        answer = other.post("/cancel", json={"job_id": job_id}, headers=by(ANNA))
                        assert answer.status_code == 202
                    assert "CANCELLED" in "".join(lines)


def test_another_address_without_keys_is_reported_at_the_start() -> None:
    """`--insecure` is a decision of the operator, and the first line reports it."""
    with running_worker(host="0.0.0.0", insecure=True) as worker:  # noqa: S104
        startup = worker.narrated("startup")
        assert (startup["level"], startup["insecure"]) == ("WARN", True)
        assert worker.client.get("/jobs", headers={"Host": "anything.example"}).status_code == 200


def test_an_idle_connection_is_kept_as_long_as_is_asked_for() -> None:
    """Proxies keep idle connections in pools, and lose a request that they send while the worker closes one."""

    def ask(connection: socket.socket) -> None:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, bool(answer.read())) == (200, True)

    for keep_alive_sec, kept in ((30, True), (0.5, False)):
        # The time for a request to be complete does not run while there is none.
        with (
            running_worker(
                keep_alive_sec=keep_alive_sec, env={"WORKER_ORCD_TEST_REQUEST_SEC": "0.3"}
            ) as idle,
            socket.create_connection(("127.0.0.1", idle.port), timeout=10.0) as connection,
        ):
            ask(connection)
            if kept:
                connection.settimeout(1.0)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(10.0)
                ask(connection)
            else:
                assert connection.recv(1) == b"", "it is closed"


@pytest.mark.parametrize("path", ["/execute", "/v1/completions", "/v1/responses"])
def test_an_answer_to_http_1_0_has_no_chunks_and_ends_with_the_connection(
    worker: RunningWorker, path: str
) -> None:
    """HTTP/1.0 has no chunks (RFC 9112, 7.1): such a client would read their lengths as text."""
    asked: dict[str, dict[str, object]] = {
        "/execute": {"job_id": fresh_id(), "prompt": "a", "max_tokens": 5},
        "/v1/completions": {"prompt": "a", "max_tokens": 5, "stream": True},
        "/v1/responses": {"input": "a", "max_output_tokens": 5, "stream": True},
    }
    body = json.dumps(asked[path]).encode()
    head = f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\nConnection: keep-alive\r\n\r\n".encode()
    answer = raw_exchange(worker, head + body)
    headers = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"transfer-encoding" not in headers
    assert b"connection: close" in headers
    status, stream = raw_body(answer)
    assert status == 200
    lines = [line for line in stream.decode().split("\n") if line]
    assert all(line.startswith(("event: ", "data: ", "id: ", ": ")) for line in lines), lines
    assert worker.client.get("/jobs").status_code == 200
