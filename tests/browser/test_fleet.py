"""The console of a fleet on Ray: one page for the jobs of all workers, whichever router answers it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.test_console import ENDLESS, complete_as_typed, job_of, pane, row, run
from tests.fleet.ray_fleet import RayFleet, running_ray_fleet

pytestmark = [pytest.mark.needs("ray"), pytest.mark.nightly, pytest.mark.timeout(300)]

JOBS = 4


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Two workers and two routers."""
    with running_ray_fleet(tmp_path_factory.mktemp("page"), 2, 2) as running:
        yield running


def test_a_page_shows_and_stops_the_jobs_of_all_workers(visit: Open, fleet: RayFleet) -> None:
    """Jobs at both workers, started in one tab and stopped in another, which shows them, too."""
    one, other = visit(fleet), visit(fleet)
    expect(one.locator("#status")).to_have_text("healthy")
    jobs = []
    for number in range(JOBS):
        if number:
            one.get_by_role("button", name="Add another prompt").click()
        run(pane(one, number), ENDLESS)
        expect(pane(one, number).get_by_role("log")).to_contain_text("w")
        jobs.append(job_of(pane(one, number)))
    expect(other.locator("#running")).to_have_text(str(JOBS))
    assert len([count for count in fleet.routed().values() if count]) == 2
    for number, job_id in enumerate(jobs):
        other.get_by_role("button", name=f"Stop job {job_id}").click()
        expect(pane(one, number).get_by_role("status")).to_have_text("cancelled (client)")
        expect(row(other, job_id)).to_contain_text("cancelled")
    expect(pane(one).locator(".receipt")).to_contain_text("Stopped in decode after")
    expect(one.locator("#running")).to_have_text("0")


def test_text_is_completed_as_it_is_typed(visit: Open, fleet: RayFleet) -> None:
    """Each change supersedes the job before, at whichever worker that is."""
    page = visit(fleet)
    complete_as_typed(page)
    expect(page.locator("#running")).to_have_text("0")
