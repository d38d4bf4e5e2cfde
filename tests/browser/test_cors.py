"""Another site's page in a real browser uses the worker, if `--cors-origin` names the site."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.helpers import ended_state, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, free_port, running_worker

KEY = "anna-0123456789abcdef"
STREAM = """async ([url, key, body]) => {
    const stop = new AbortController();
    const asked = {method: "POST", headers: {Authorization: `Bearer ${key}`, "Content-Type": "application/json"}};
    try {
        const answer = await fetch(url, {...asked, body: JSON.stringify(body), signal: stop.signal});
        const first = answer.ok ? new TextDecoder().decode((await answer.body.getReader().read()).value) : "";
        const refusal = answer.ok ? null : await answer.json();
        stop.abort();
        const [job, correlation] = ["X-Job-Id", "X-Correlation-Id"].map(name => answer.headers.get(name));
        return {status: answer.status, job, correlation, first, refusal};
    } catch (error) {
        return {failed: error.name};
    }
}"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningWorker, RunningWorker]]:
    """A worker that serves the page, and one with keys that lets pages of the first one's address in."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n")
    port = free_port()
    with (
        running_worker(port=port) as site,
        running_worker(api_key_file=str(keys), cors_origin=f"http://127.0.0.1:{port}") as guarded,
    ):
        guarded.client.headers["Authorization"] = f"Bearer {KEY}"
        yield site, guarded


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty one."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def ask(page: Page, worker: RunningWorker, key: str, job_id: str) -> dict[str, Any]:
    """What the page's script gets: a response, or a network error."""
    body = {"job_id": job_id, "prompt": script(token_ms=5)}
    answer: dict[str, Any] = page.evaluate(STREAM, [f"{worker.url}/execute", key, body])
    return answer


def test_a_page_of_a_listed_origin_streams_stops_and_reads_errors(
    page: Page, asked: tuple[RunningWorker, RunningWorker]
) -> None:
    """The browser sends a preflight first. `abort()` stops the job. A page of another origin gets nothing at all."""
    site, guarded = asked
    job_id, foreign = fresh_id("page"), fresh_id("foreign")
    page.goto(f"{site.url}/livez")
    answer = ask(page, guarded, KEY, job_id)
    assert (answer["status"], answer["job"]) == (200, job_id)
    assert answer["correlation"]
    assert answer["first"].startswith("event: started")
    receipt = ended_state(guarded, job_id)["receipt"]
    assert isinstance(receipt, dict)
    assert receipt["reason"] == "disconnect"
    refused = ask(page, guarded, "wrong-0123456789abcdef", fresh_id())
    assert (refused["status"], refused["refusal"]["error"]["code"]) == (401, "UNAUTHORIZED")
    page.goto(f"http://localhost:{site.port}/livez")
    assert ask(page, guarded, KEY, foreign) == {"failed": "TypeError"}
    assert guarded.client.get(f"/jobs/{foreign}").status_code == 404
