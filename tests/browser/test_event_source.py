"""A browser's own `EventSource` on a job that another request has started (docs/clients.md)."""

from playwright.sync_api import Page, Response

from tests.browser.conftest import Open
from tests.helpers import fresh_id, script
from worker_orcd.testing.harness import RunningWorker

FOLLOW = """job => new Promise(resolve => {
    const source = new EventSource(`/jobs/${job}/events`);
    const seen = [];
    const look = event => {
        if (event.data) seen.push(event.lastEventId);
        if (source.readyState === EventSource.CLOSED) resolve(seen);
    };
    for (const name of ["started", "token", "end", "error"]) source.addEventListener(name, look);
})"""


def test_an_event_source_comes_back_once_after_the_end_and_closes(visit: Open, shown: RunningWorker) -> None:
    """It sees each event once; the 204 is its last answer."""
    stream = shown.execute(fresh_id("followed"), script(text="abc", token_ms=1))
    page: Page = visit(shown)
    statuses: list[int] = []

    def note(answer: Response) -> None:
        if answer.url.endswith(f"{stream.job_id}/events"):
            statuses.append(answer.status)

    page.on("response", note)
    seen = page.evaluate(FOLLOW, stream.job_id)
    assert seen == [event.id for event in stream.finished().events]
    assert statuses == [200, 204]
