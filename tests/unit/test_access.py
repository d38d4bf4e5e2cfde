"""Who may ask without a key, and which wire formats are refused, by the app itself (contract, 8)."""

import asyncio
import io
from typing import Any

import pytest
from starlette.testclient import TestClient

from tools.docs import idle_worker
from worker_orcd.api.access import Access
from worker_orcd.api.app import create_app
from worker_orcd.narration import Narrator

CANCEL = {"job_id": "x"}


class Asking:
    """A client of an app without a server."""

    def __init__(self, *, insecure: bool = False) -> None:
        self.narrator = Narrator.configure("w", log_format="json", stream=io.StringIO())
        access = Access(insecure=insecure)
        self.client = TestClient(
            create_app(idle_worker(), self.narrator, lambda _: None, access=access, console=True),
            base_url="http://127.0.0.1:8080",
        )

    def status(self, method: str = "GET", path: str = "/jobs", **headers: str) -> int:
        """Of an answer, which has the one shape if it is a refusal."""
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
    """Also with --insecure."""
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
    """--insecure lets other machines in, not the pages their users look at."""
    asking = Asking(insecure=insecure)
    for path in ("/cancel", "/shutdown"):
        assert asking.status("POST", path, origin=origin) == 400
        assert asking.status("POST", path, origin="http://127.0.0.1:8080") == 202


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_foreign_pages_get_is_refused(site: str) -> None:
    """It has no Origin; the browser says where it comes from. A link to the console works."""
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
    """Instead of taking the body as if it were plain."""
    assert Asking().status("POST", "/cancel", **{name: value}) == status


def test_another_http_version_is_refused() -> None:
    """505, in the one shape."""
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


def test_what_was_not_let_in_is_narrated_to_the_operator_only() -> None:
    """A stranger cannot push tenants' events out, nor write an id of its choice into their streams."""
    asking = Asking()
    told: list[Any] = []
    asking.narrator.audience.tell = lambda event, owner: told.append(event)  # type: ignore[method-assign]
    assert asking.status(origin="http://evil.example", x_correlation_id="evil") == 400
    assert told == []
    assert asking.status(path="/nowhere") == 404
    assert [event["action"] for event in told] == ["error"]
