"""The console's files, and the log events that it shows."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.helpers import fresh_id
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

ANNA, BERTA = "anna-0123456789abcdef", "berta-0123456789abcdef"


def test_the_page_and_all_its_files_are_there(worker: RunningWorker) -> None:
    """Their headers allow the page to connect to its worker only."""
    page = worker.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    names = re.findall(r'(?:href|src)="(/console/[^"]+)"', page.text)
    assert len(names) >= 5
    for name in names:
        file = worker.client.get(name)
        assert file.status_code == 200, name
        assert file.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r'(?:href|src)="https?:', page.text)


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "uplot.LICENSE", "..%2fapp.js", ""])
def test_nothing_else_is_served(worker: RunningWorker, name: str) -> None:
    """404 in the one shape."""
    answer = worker.client.get(f"/console/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "INVALID_REQUEST")


def test_no_console() -> None:
    """`--no-console` turns the page off."""
    with running_worker(no_console=True) as plain:
        assert plain.client.get("/").status_code == 404
        assert plain.client.get("/console/app.js").status_code == 404


@pytest.mark.needs("node")
def test_the_consoles_own_tests() -> None:
    """The JavaScript tests of its modules."""
    tests = Path(__file__).parents[1] / "console"
    done = subprocess.run(
        ["node", "--test", str(tests)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


# The narration.


class Listening:
    """A listener, from its creation on."""

    def __init__(self, worker: RunningWorker, **headers: str) -> None:
        self.received: list[dict[str, object]] = []
        self.ended = threading.Event()
        self.began = threading.Event()
        self._leave = threading.Event()
        args = (worker, headers)
        threading.Thread(target=self._listen, args=args, daemon=True).start()
        assert self.began.wait(10)

    def _listen(self, worker: RunningWorker, headers: dict[str, str]) -> None:
        with (
            httpx2.Client(base_url=worker.url, timeout=60, trust_env=False, headers=headers) as client,
            client.stream("GET", "/narration") as answer,
        ):
            self.status = answer.status_code
            self.began.set()
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.received.append(json.loads(line[6:]))
                if self._leave.is_set():
                    break
        self.ended.set()

    def leave(self) -> None:
        """Wait for the next line."""
        self._leave.set()

    def actions_of(self, job_id: str) -> list[object]:
        """The events of a job."""
        return [reported["action"] for reported in self.received if reported.get("job_id") == job_id]


@pytest.fixture
def listening(worker: RunningWorker) -> Iterator[Listening]:
    """A listener of the narration."""
    made = Listening(worker)
    yield made
    made.leave()
    worker.cancel("other")


def test_what_is_narrated_is_received(worker: RunningWorker, listening: Listening) -> None:
    """The same objects as in the log: earlier events, and new ones."""
    stream = worker.execute(fresh_id("logged"), max_tokens=2).finished()
    wait_until(lambda: "execute_end" in listening.actions_of(stream.job_id), what="its end to be logged")
    wait_until(
        lambda: "execute_start" in listening.actions_of(stream.job_id), what="what the engine says of it"
    )
    logged = worker.narration()
    assert [reported for reported in listening.received if reported not in logged] == []
    assert all("_owner" not in reported for reported in logged)


def test_a_listener_that_leaves_leaves_nothing(worker: RunningWorker) -> None:
    """A thirty-third listener is refused."""
    before = psutil.Process(worker.process.pid).num_fds()
    listeners = [Listening(worker) for _ in range(32)]
    assert {one.status for one in listeners} == {200}
    refused = worker.client.get("/narration")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "QUEUE_FULL")
    for one in listeners:
        one.leave()
    worker.cancel("other")
    for one in listeners:
        assert one.ended.wait(10)
    wait_until(
        lambda: psutil.Process(worker.process.pid).num_fds() <= before + 1, what="descriptors given back"
    )


def test_a_shutdown_does_not_wait_for_listeners() -> None:
    """They receive the event, and their streams end."""
    with running_worker() as going:
        listener = Listening(going)
        assert going.stop() == 0
        assert listener.ended.wait(5)
    assert "drain" in [reported["action"] for reported in listener.received]


def test_nobody_sees_events_of_others_with_keys(tmp_path: Path) -> None:
    """Neither their jobs, nor their cancels, nor their refused requests."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{ANNA}\n{BERTA}\n")
    operators = tmp_path / "operators.txt"
    operators.write_text("olga-0123456789abcdef\n")
    with running_worker(api_key_file=str(keys), operator_key_file=str(operators)) as guarded:
        olga = {"Authorization": "Bearer olga-0123456789abcdef"}
        anna, berta = {"Authorization": f"Bearer {ANNA}"}, {"Authorization": f"Bearer {BERTA}"}
        assert guarded.client.get("/narration").status_code == 401
        listener = Listening(guarded, **anna)
        for whose in (anna, berta):
            name = "anna" if whose is anna else "berta"
            body = {"job_id": f"of-{name}", "prompt": "x", "max_tokens": 1}
            guarded.client.post("/execute", json=body, headers=whose)
            guarded.client.post("/cancel", json={"job_id": f"unknown-{name}"}, headers=whose)
            guarded.client.post("/execute", json={"job_id": name, "bad": 1}, headers=whose)
        guarded.client.post("/cancel", json={"job_id": "last-anna"}, headers=anna)
        wait_until(lambda: listener.actions_of("last-anna"), what="the last")
        reported = json.dumps(listener.received)
        by_operator = Listening(guarded, **olga)
        guarded.client.post("/shutdown", headers=olga)
        wait_until(
            lambda: "drain" in [one["action"] for one in listener.received], what="what concerns everybody"
        )
        assert "of-anna" in reported
        assert "execute_start" in listener.actions_of("of-anna")
        wait_until(lambda: "drain" in [one["action"] for one in by_operator.received], what="the operator's")
        drains = [
            next(one for one in by.received if one["action"] == "drain") for by in (listener, by_operator)
        ]
        assert ["jobs_running" in drain for drain in drains] == [False, True]
        received_by_operator = json.dumps(by_operator.received)
        assert "unknown-berta" in received_by_operator
        for of in ("of-anna", "of-berta"):
            assert "execute_start" in by_operator.actions_of(of)
        assert '"path"' not in reported
        assert '"path"' in received_by_operator
        assert "berta" not in reported
        assert "model_load_complete" in reported
        refused = [one["code"] for one in listener.received if one["action"] == "error"]
        assert refused == ["INVALID_REQUEST"], (
            "her own only: a request without a key is for the operator's log"
        )
