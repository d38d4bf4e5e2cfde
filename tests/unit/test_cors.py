"""Which other sites' pages may use the worker (`--cors-origin`)."""

import io
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tools.docs.examples import idle_worker
from worker_orcd.api.access import Access
from worker_orcd.api.app import create_app
from worker_orcd.api.cors import EXPOSED_HEADERS
from worker_orcd.api.keys import ApiKeys
from worker_orcd.api.middleware import MAX_BODY_BYTES
from worker_orcd.narration import Narrator
from worker_orcd.worker.single import SingleWorker

APP = "https://app.example"
KEY = "anna-0123456789abcdef"


class Asking:
    """A client of an app without a server."""

    def __init__(self, *origins: str, keys: Path | None = None) -> None:
        if keys is not None:
            keys.write_text(f"{KEY}\n")
        access = Access(None if keys is None else ApiKeys(keys), cors_origins=origins)
        narrator = Narrator.configure("w", log_format="json", stream=io.StringIO())
        app = create_app(SingleWorker(idle_worker()), narrator, lambda _: None, access=access, console=True)
        self.client = TestClient(app, base_url="http://127.0.0.1:8080")

    def ask(self, origin: str, method: str = "GET", path: str = "/jobs", **more: Any) -> Any:
        """Send a request as a script on a page of this origin does, with the browser's headers."""
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", **more.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **more)

    def preflight(self, origin: str, method: str = "POST", path: str = "/cancel") -> Any:
        """Send a browser's preflight for a request with a key and JSON."""
        asked = {
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization,content-type,x-job-id,x-stainless-os",
        }
        return self.ask(origin, "OPTIONS", path, headers=asked)


def of_cors(answer: Any) -> set[str]:
    """Names of the answer's CORS headers."""
    return {name for name in answer.headers if name.startswith("access-control")}


def with_key(who: str | None) -> dict[str, str]:
    """The header that shows a key."""
    return {} if who is None else {"Authorization": f"Bearer {who}"}


def test_a_preflight_needs_no_key_and_all_else_does(tmp_path: Path) -> None:
    """Browsers send preflights without a key. An `OPTIONS` that is no preflight needs one."""
    asking = Asking(APP, keys=tmp_path / "keys")
    answer = asking.preflight(APP)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "x-job-id" in answer.headers["access-control-allow-headers"]
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert answer.headers["x-correlation-id"]
    for method, path in (("OPTIONS", "/jobs"), ("GET", "/jobs"), ("POST", "/cancel"), ("GET", "/nowhere")):
        refused = asking.ask(APP, method, path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHORIZED")
        assert refused.headers["access-control-allow-origin"] == APP


def test_a_page_of_an_allowed_origin_can_ask_and_read_the_answer() -> None:
    """Also without keys, when pages of other sites are refused."""
    asking = Asking(APP, "app://-")
    for origin in (APP, "app://-"):
        answer = asking.ask(origin, "POST", "/cancel", json={"job_id": "x"})
        assert answer.status_code == 202
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"]
        assert answer.headers["access-control-expose-headers"].split(", ") == list(EXPOSED_HEADERS)
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{APP}:444", "https://app.example.evil", ""]
)
def test_other_origins_get_what_they_get_without_the_option(tmp_path: Path, keys: bool, origin: str) -> None:
    """No CORS header, and a refused preflight."""
    files: list[Any] = [tmp_path / "a", tmp_path / "b"] if keys else [None, None]
    with_it, without = Asking(APP, keys=files[0]), Asking(keys=files[1])
    for asking in (with_it, without):
        answers = [
            asking.preflight(origin),
            asking.ask(origin, "POST", "/cancel", json={"job_id": "x"}, headers=with_key(KEY)),
        ]
        assert [of_cors(answer) for answer in answers] == [set(), set()]
        assert [answer.status_code for answer in answers] == ([401, 202] if keys else [400, 400])


def test_a_preflight_is_refused_without_the_option(tmp_path: Path) -> None:
    """The option is off by default."""
    assert Asking().preflight(APP).status_code == 400
    assert Asking(keys=tmp_path / "keys").preflight(APP).status_code == 401


def test_a_star_lets_every_page_in_but_not_by_a_rebound_name(tmp_path: Path) -> None:
    """`Host` is checked all the same; a request of a page that has no `Origin` cannot be read by it, and is refused."""
    asking = Asking("*")
    answer = asking.ask("null", "POST", "/cancel", json={"job_id": "x"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "*")
    assert asking.ask(APP, headers={"Host": "evil.example"}).status_code == 400
    assert asking.client.get("/jobs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 400
    guarded = Asking("*", keys=tmp_path / "keys")
    assert guarded.preflight(APP).headers["access-control-allow-origin"] == "*"
    assert guarded.ask(APP).status_code == 401


@pytest.mark.parametrize(
    ("status", "method", "path", "body"),
    [
        (400, "POST", "/execute", b"{"),
        (404, "GET", "/jobs/x", b""),
        (405, "DELETE", "/cancel", b""),
        (413, "POST", "/execute", b"x" * (MAX_BODY_BYTES + 1)),
    ],
)
def test_errors_can_be_read_too(status: int, method: str, path: str, body: bytes) -> None:
    """Otherwise a page would only see a network error."""
    answer = Asking(APP).ask(APP, method, path, content=body)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == APP


def test_a_refused_preflight_has_the_one_shape() -> None:
    """Starlette answers with plain text."""
    answer = Asking(APP).preflight(APP, "BREW")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert answer.json()["error"]["param"] == "Access-Control-Request-Method"
