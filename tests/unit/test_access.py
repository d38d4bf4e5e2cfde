"""Which requests need a key, and which wire formats are refused, by the app itself (contract, 8)."""

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tools.docs.examples import idle_worker
from worker_orcd.api.access import Access
from worker_orcd.api.app import create_app
from worker_orcd.api.keys import ApiKeys
from worker_orcd.narration import EventFields, Narrator
from worker_orcd.narration.broadcast import BACKLOG
from worker_orcd.supervisor.supervisor import EngineState
from worker_orcd.worker.single import SingleWorker

CANCEL = {"job_id": "x"}


class Asking:
    """A client of an app without a server."""

    def __init__(self, *, insecure: bool = False) -> None:
        self.narrator = Narrator.configure("w", log_format="json", stream=io.StringIO())
        access = Access(insecure=insecure)
        self.client = TestClient(
            create_app(
                SingleWorker(idle_worker()), self.narrator, lambda _: None, access=access, console=True
            ),
            base_url="http://127.0.0.1:8080",
        )

    def status(self, method: str = "GET", path: str = "/jobs", **headers: str) -> int:
        """Status of an answer; a refusal must have the one error shape."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.client.request(method, path, headers=named, json=CANCEL if method == "POST" else None)
        if answer.status_code >= 400:
            assert answer.json()["error"]["code"] == "INVALID_REQUEST"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        return answer.status_code


@pytest.mark.parametrize(
    "host",
    ["evil@localhost", "localhost/evil", "localhost:x", "localhost#a", "local host", "localhost?", "[::1"],
)
@pytest.mark.parametrize("insecure", [False, True])
def test_a_host_that_is_no_name_is_refused(host: str, insecure: bool) -> None:
    """A malformed `Host` is refused, also with --insecure."""
    assert Asking(insecure=insecure).status(host=host) == 400


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize(
    "origin",
    [
        "x://127.0.0.1:8080",
        "http://evil.example",
        "null",
        "http://127.0.0.1:8080/",
        "http://a@127.0.0.1:8080",
        "",
    ],
)
def test_a_foreign_page_cannot_ask(origin: str, insecure: bool) -> None:
    """--insecure admits other machines, but not the web pages that their users open."""
    asking = Asking(insecure=insecure)
    for path in ("/cancel", "/shutdown"):
        assert asking.status("POST", path, origin=origin) == 400
        assert asking.status("POST", path, origin="http://127.0.0.1:8080") == 202


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_foreign_pages_get_is_refused(site: str) -> None:
    """A GET has no Origin, but the browser names the site that sent it. A link to the console works."""
    asking = Asking()
    assert asking.status(sec_fetch_site=site) == 400
    assert asking.status(path="/", sec_fetch_site=site, sec_fetch_mode="no-cors") == 400
    assert asking.status(path="/", sec_fetch_site=site, sec_fetch_mode="navigate") == 200
    assert asking.status(sec_fetch_site="same-origin") == asking.status(sec_fetch_site="none") == 200


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("content_encoding", "gzip", 415),
        ("content_encoding", "identity", 202),
        ("transfer_encoding", "gzip, chunked", 501),
        ("transfer_encoding", "chunked", 202),
    ],
)
def test_codings_that_are_not_read_are_refused(name: str, value: str, status: int) -> None:
    """Otherwise an encoded body would be read as plain bytes."""
    assert Asking().status("POST", "/cancel", **{name: value}) == status


def test_another_http_version_is_refused() -> None:
    """The answer is 505, in the one error shape."""
    asking = Asking()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "http_version": "2.0",
        "method": "GET",
        "path": "/jobs",
        "raw_path": b"/jobs",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"127.0.0.1")],
    }

    async def ask() -> None:
        await asking.client.app(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 505
    assert b"INVALID_REQUEST" in sent[1]["body"]


KEYS = {"anna": "anna-0123456789abcdef", "berta": "berta-0123456789abcdef", "olga": "olga-0123456789abcdef"}
"""Olga is the operator."""


class Guarded:
    """An app with the keys of two tenants, and with an operator's key or without one."""

    def __init__(self, folder: Path, *, operators: bool = True, private_load: bool = False) -> None:
        files = [folder / "tenants", folder / "operators"]
        files[0].write_text(f"{KEYS['anna']}\n{KEYS['berta']}\n")
        files[1].write_text(f"{KEYS['olga']}\n")
        self.keys = ApiKeys(files[0], files[1] if operators else None)
        self.narrator = Narrator.configure("w", log_format="json", stream=io.StringIO())
        self.worker = idle_worker()
        self.asked_to_shut_down: list[str] = []
        self.app = create_app(
            SingleWorker(self.worker),
            self.narrator,
            self.asked_to_shut_down.append,
            access=Access(self.keys),
            console=True,
            private_load=private_load,
        )
        self.client = TestClient(self.app, base_url="http://127.0.0.1:8080")

    def ask(self, who: str | None, method: str, path: str, **more: Any) -> Any:
        """The answer to a request with this person's key."""
        headers = {} if who is None else {"Authorization": f"Bearer {KEYS[who]}"}
        return self.client.request(method, path, headers=headers | more.pop("headers", {}), **more)

    def received_by(self, who: str) -> list[EventFields]:
        """All that this person gets from `/narration`."""
        caller = self.keys.caller(KEYS[who])
        assert caller is not None
        listener = self.narrator.broadcast.join(caller.owner, operator=caller.operator)
        assert listener is not None

        async def listen() -> list[EventFields]:
            async for batch in listener.listen(0.001):
                return [one.event for one in batch]
            return []

        return asyncio.run(listen())


@pytest.mark.parametrize(("method", "path"), [("POST", "/shutdown"), ("GET", "/metrics")])
def test_what_concerns_all_tenants_needs_an_operators_key(tmp_path: Path, method: str, path: str) -> None:
    """A tenant's key is refused; without an operator's key file every key is."""
    guarded = Guarded(tmp_path)
    assert guarded.ask(None, method, path).status_code == 401
    refused = guarded.ask("anna", method, path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "UNAUTHORIZED")
    assert "--operator-key-file" in refused.json()["error"]["message"]
    assert guarded.asked_to_shut_down == []
    assert guarded.ask("olga", method, path).status_code < 300
    without = Guarded(tmp_path, operators=False)
    assert without.ask("anna", method, path).status_code == 403
    assert without.ask("olga", method, path).status_code == 401
    assert without.asked_to_shut_down == []


def test_every_route_says_whom_it_is_for(tmp_path: Path) -> None:
    """A new route needs a key unless it is listed here, and only two routes are for operators."""
    guarded = Guarded(tmp_path)
    open_to, for_operators = set(), set()
    for path in guarded.app.openapi()["paths"].keys() | {"/", "/console/app.js", "/docs", "/openapi.json"}:
        asked = path.replace("{", "").replace("}", "")
        for method in ("GET", "POST"):
            answer = guarded.ask(None, method, asked)
            if answer.status_code not in (401, 405):
                open_to.add(path)
            if path != "/narration" and guarded.ask("anna", method, asked).status_code == 403:
                for_operators.add(path)
    assert open_to == {"/", "/console/app.js", "/livez", "/readyz", "/health"}
    assert for_operators == {"/shutdown", "/metrics"}


def test_health_shows_paths_and_if_asked_load_to_operators_only(tmp_path: Path) -> None:
    """Other clients see a general reason, and with `--private-load` null for load figures."""
    load = ("kv_cells_used", "kv_cells_cached", "prefix_store_bytes", "jobs_running", "jobs_queued")
    for private_load in (False, True):
        guarded = Guarded(tmp_path, private_load=private_load)
        guarded.worker.supervisor.state = EngineState.PERMANENTLY_FAILED
        guarded.worker.supervisor.reason = "--model /secret/model.gguf: no such file"
        for who in (None, "anna", "berta", "olga"):
            answer = guarded.ask(who, "GET", "/health")
            assert answer.status_code == 503
            assert ("/secret" in answer.text) is (who == "olga")
            assert answer.json()["status"] == "unhealthy"
            assert answer.json()["reason"]
            hidden = [name for name in load if answer.json()[name] is None]
            assert hidden == (list(load) if private_load and who != "olga" else [])


def test_a_wrong_key_does_not_turn_a_probe_away(tmp_path: Path) -> None:
    """Open paths stay open to a probe whose key is no longer valid."""
    answer = Guarded(tmp_path).client.get("/livez", headers={"Authorization": "Bearer no-0123456789abcdef"})
    assert answer.status_code == 200


def test_without_keys_every_client_is_an_operator() -> None:
    """A client that reaches a worker without keys sees everything."""
    assert Asking().status(path="/metrics") == 200


def test_what_was_not_accepted_is_narrated_to_the_operator_only(tmp_path: Path) -> None:
    """A client without a key cannot displace tenants' events, nor write an id of its choice into their streams."""
    guarded = Guarded(tmp_path)
    assert guarded.ask("anna", "GET", "/nowhere").status_code == 404
    for _ in range(BACKLOG + 10):
        answer = guarded.ask(None, "GET", "/jobs", headers={"X-Correlation-Id": "evil"})
        assert answer.status_code == 401
    assert [event["http_status"] for event in guarded.received_by("anna")] == [404]
    assert guarded.received_by("berta") == []
    received = guarded.received_by("olga")
    assert {event["http_status"] for event in received} == {404, 401}, (
        "strangers push nobody out there, either"
    )
    assert "evil" in {event["correlation_id"] for event in received}
