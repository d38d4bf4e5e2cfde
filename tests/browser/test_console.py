"""The console, used as a person uses it."""

import re
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import Open
from tests.helpers import fresh_id, receipt_of, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

SLOW = script(token_ms=20)
ENDLESS = script(token_ms=100)
STREAMS = 6
"""The connections that a browser opens to one host over HTTP/1.1, for all its tabs together."""
KEY = "anna-0123456789abcdef"


def pane(page: Page, number: int = 0) -> Locator:
    """One of the prompts."""
    return page.get_by_role("article", name="Prompt").nth(number)


def run(where: Locator, prompt: str) -> None:
    """Write a prompt and run it."""
    where.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    where.get_by_role("button", name="Run").click()


def job_of(where: Locator) -> str:
    """Its job, which has started."""
    return (where.get_by_role("status").text_content() or "").split()[1].rstrip(",")


def row(page: Page, job_id: str) -> Locator:
    """A job's row in the table."""
    return page.locator("#jobs tr").filter(has_text=job_id)


def test_a_prompt_streams(visit: Open, shown: RunningWorker) -> None:
    """The page shows its text unchanged, and how it ended."""
    page = visit(shown)
    run(pane(page), script(text="<b>Hi</b> 👋", token_ms=5))
    expect(pane(page).get_by_role("log")).to_have_text("<b>Hi</b> 👋")
    expect(pane(page).get_by_role("status")).to_contain_text("(stop)")
    expect(page.locator("#status")).to_have_text("healthy")
    expect(page.locator("#narration")).to_contain_text("ends after")


def test_stop_in_decode_shows_the_receipt(visit: Open, shown: RunningWorker) -> None:
    """As a drawing with four stages."""
    page = visit(shown)
    run(pane(page), SLOW)
    expect(pane(page).get_by_role("log")).to_contain_text("w")
    pane(page).get_by_role("button", name="Stop").click()
    expect(pane(page).get_by_role("status")).to_have_text("cancelled (client)")
    receipt = pane(page).locator(".receipt")
    expect(receipt).to_contain_text("Stopped in decode after")
    expect(receipt).to_contain_text(re.compile(r"→ 0, [1-9]\d* kept for later jobs"))
    expect(page.locator("#warm")).to_contain_text(re.compile(r"^[1-9]\d* cells, \d+ MiB stored$"))
    for stage in ("accepted", "stopped", "freed", "terminal"):
        expect(receipt.get_by_role("img").get_by_text(stage)).to_be_visible()
    expect(pane(page).get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.locator("#latency-text")).to_contain_text("median")


def test_escape_stops_in_prefill(visit: Open, shown: RunningWorker) -> None:
    """With the keyboard only: Ctrl+Enter runs, Escape stops."""
    page = visit(shown)
    field = pane(page).get_by_role("textbox", name="Prompt", exact=True)
    field.fill(script(4000, row_ms=3))
    field.press("Control+Enter")
    expect(pane(page).get_by_role("status")).to_contain_text("job console-")
    field.press("Escape")
    expect(pane(page).locator(".receipt")).to_contain_text("Stopped in prefill after")


def complete_as_typed(page: Page) -> None:
    """Type into the box that completes. Each change supersedes the job before; its receipt is shown, and the completion
    is that of the whole text."""
    text, receipts = page.get_by_role("textbox", name="Text", exact=True), page.locator("#superseded li")
    text.fill(script(1500, row_ms=3))
    expect(page.locator("#typing-state")).to_contain_text("of 1500 tokens")
    text.press("End")
    for number, letter in enumerate("ab", start=1):
        text.press_sequentially(letter)
        expect(receipts).to_have_count(number)
        expect(receipts.first).to_contain_text("superseded in prefill, stopped after")
        expect(page.locator("#typing-state")).to_contain_text(f"of {1500 + number} tokens")
    text.fill(script(text="done"))
    expect(receipts).to_have_count(3)
    expect(page.get_by_role("log", name="Completion")).to_have_text("done")
    expect(page.locator("#typing-state")).to_have_text("4 tokens")


def test_text_is_completed_as_it_is_typed(visit: Open, shown: RunningWorker) -> None:
    """At one worker."""
    complete_as_typed(visit(shown))


def test_emptying_the_box_or_escape_stops_its_job(visit: Open, shown: RunningWorker) -> None:
    """No completion is left."""
    page = visit(shown)
    text = page.get_by_role("textbox", name="Text", exact=True)
    for emptying in (True, False):
        text.fill(script(6000, row_ms=3))
        expect(page.locator("#running")).to_have_text("1")
        if emptying:
            text.fill("")
        else:
            text.press("Escape")
        expect(page.locator("#running")).to_have_text("0")
    expect(page.locator("#typing-state")).to_have_text("cancelled (client)")


def test_prompts_run_side_by_side(visit: Open, shown: RunningWorker) -> None:
    """Stopping one leaves the other alone; closing one stops it."""
    page = visit(shown)
    page.get_by_role("button", name="Add another prompt").click()
    for number in (0, 1):
        run(pane(page, number), SLOW)
        expect(pane(page, number).get_by_role("log")).to_contain_text("w")
    pane(page, 0).get_by_role("button", name="Stop").click()
    expect(pane(page, 0).get_by_role("status")).to_have_text("cancelled (client)")
    expect(pane(page, 1).get_by_role("button", name="Stop")).to_be_enabled()
    pane(page, 1).get_by_role("button", name="Close this prompt").click()
    expect(page.get_by_role("article", name="Prompt")).to_have_count(1)
    expect(page.locator("#running")).to_have_text("0")


def test_a_job_of_one_tab_is_stopped_in_another(visit: Open, shown: RunningWorker) -> None:
    """Both show how it ended."""
    one, other = visit(shown), visit(shown)
    run(pane(one), SLOW)
    expect(pane(one).get_by_role("status")).to_contain_text("job console-")
    job_id = job_of(pane(one))
    other.get_by_role("button", name=f"Stop job {job_id}").click()
    expect(pane(one).get_by_role("status")).to_have_text("cancelled (client)")
    expect(row(other, job_id)).to_contain_text("cancelled")
    expect(row(one, job_id)).to_contain_text("cancelled")


def stopped_at_once(worker: RunningWorker, job_id: str) -> None:
    """It is, since Stop was pressed, and by that."""
    worker.narrated("cancel_complete", within_sec=2, job_id=job_id)
    receipt_of(worker, job_id)


@pytest.mark.parametrize(("tabs", "prompts"), [(1, 6), (2, 4)])
def test_stop_works_however_many_streams_the_browser_has_open(visit: Open, tabs: int, prompts: int) -> None:
    """In a prompt, in the table and for a group; a prompt for which there is no stream says so, and can be stopped."""
    with running_worker(parallel=8, drain_sec=0) as wide:
        pages: list[Page] = []
        while len(pages) < tabs:
            page = visit(wide, beside=pages[0] if pages else None)
            pages.append(page)
            for number in range(prompts):
                if number:
                    page.get_by_role("button", name="Add another prompt").click()
                else:
                    pane(page).get_by_text("Options").click()
                    pane(page).get_by_label("group").fill("side-by-side")
                run(pane(page, number), ENDLESS)

        def running() -> list[str]:
            return [job["job_id"] for job in wide.client.get("/jobs?limit=0").json()["jobs"]]

        # Each tab also follows the narration.
        wait_until(lambda: len(running()) == STREAMS - tabs, what="as many as there can be")
        waiting = pane(pages[-1], prompts - 1)
        expect(waiting.get_by_role("status")).to_contain_text("waiting for a connection")
        waiting.get_by_role("button", name="Stop").click()
        expect(waiting.get_by_role("status")).to_have_text("stopped before the worker had answered")

        first, second, third, *_ = running()
        pages[-1].get_by_role("button", name=f"Stop job {second}").click()
        stopped_at_once(wide, second)
        pages[0].bring_to_front()
        third_pane = pages[0].get_by_role("article", name="Prompt").filter(has_text=third)
        third_pane.get_by_role("button", name="Stop").click()
        stopped_at_once(wide, third)
        pages[-1].get_by_role("button", name="Stop all of group side-by-side").first.click()
        stopped_at_once(wide, first)


def test_a_job_that_is_stopped_while_it_waits_in_the_browser_never_runs(visit: Open) -> None:
    """Also when its turn would come long after the worker has forgotten the cancel."""
    with running_worker(parallel=8, cancel_memory_sec=0, drain_sec=0) as wide:
        page = visit(wide)
        for number in range(STREAMS):
            if number:
                page.get_by_role("button", name="Add another prompt").click()
            run(pane(page, number), ENDLESS)
        expect(pane(page, STREAMS - 1).get_by_role("status")).to_contain_text("waiting for a connection")
        pane(page, STREAMS - 1).get_by_role("button", name="Stop").click()
        expect(pane(page, STREAMS - 1).get_by_role("button", name="Run")).to_be_enabled()
        pane(page, 0).get_by_role("button", name="Stop").click()
        expect(pane(page, 0).get_by_role("status")).to_have_text("cancelled (client)")
        run(pane(page, 0), script(text="z"))
        expect(pane(page, 0).get_by_role("log")).to_have_text("z")
        assert len(wide.client.get("/jobs").json()["jobs"]) == STREAMS


def test_a_page_that_nobody_sees_keeps_no_stream(visit: Open, shown: RunningWorker) -> None:
    """When the page is visible again, its narration continues where it was."""
    page = visit(shown)
    lines = page.locator("#narration li")

    def seen(now: bool) -> None:
        page.evaluate(
            """(hidden) => {
                Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            not now,
        )

    before = shown.execute(fresh_id("seen"), script(text="a")).finished()
    expect(lines.filter(has_text=before.job_id).last).to_contain_text("ends after")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/narration")):
        seen(False)
    unseen = shown.execute(fresh_id("unseen"), script(text="a")).finished()
    seen(True)
    expect(lines.filter(has_text=unseen.job_id).last).to_contain_text("ends after")
    assert len([line for line in lines.all_text_contents() if f"{before.job_id} ends" in line]) == 1


def test_streams_come_through_a_login_in_front_of_the_worker(visit: Open, shown: RunningWorker) -> None:
    """The login needs the browser's credentials, so the page repeats the request with them."""
    page = visit(shown)
    asked: list[str] = []

    def login(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=401, body="<h1>Who are you?</h1>")
        else:
            route.continue_()

    page.route("**/execute", login)
    run(pane(page), script(text="admitted"))
    expect(pane(page).get_by_role("log")).to_have_text("admitted")
    assert len(asked) == 2
    expect(page.get_by_role("dialog")).to_be_hidden()


REFUSALS: dict[str, dict[str, Any]] = {
    "UNAUTHORIZED: no key fits": {"status": 401},
    "QUEUE_FULL: no key fits": {"status": 429},
    "the worker cannot be reached": {},
}


@pytest.mark.parametrize("reported", REFUSALS)
def test_a_stop_that_fails_is_reported_and_can_be_tried_again(
    visit: Open, shown: RunningWorker, reported: str
) -> None:
    """In the prompt and in the table."""
    page = visit(shown)

    def fail(route: Route) -> None:
        if not REFUSALS[reported]:
            route.abort()
            return
        error = {"code": reported.partition(":")[0], "message": "no key fits", "retriable": False}
        route.fulfill(**REFUSALS[reported], json={"error": error})

    run(pane(page), ENDLESS)
    expect(pane(page).get_by_role("log")).to_contain_text("w")
    job_id = job_of(pane(page))
    page.route("**/cancel", fail)
    stop = pane(page).get_by_role("button", name="Stop")
    stop.click()
    expect(pane(page).locator(".failed")).to_have_text(f"It was not stopped: {reported}")
    if page.get_by_role("dialog").is_visible():
        page.keyboard.press("Escape")
    expect(stop).to_be_enabled()
    row_stop = page.get_by_role("button", name=f"Stop job {job_id}")
    row_stop.click()
    expect(page.locator("#not-stopped")).to_have_text(f"{job_id} was not stopped: {reported}")
    if page.get_by_role("dialog").is_visible():
        page.keyboard.press("Escape")
    page.unroute("**/cancel")
    row_stop.click()
    expect(pane(page).get_by_role("status")).to_have_text("cancelled (client)")
    expect(page.locator("#not-stopped")).to_be_empty()


def test_a_worker_that_hangs_is_away(visit: Open) -> None:
    """The page and Stop report it within seconds; when the worker continues, so does the page."""
    with running_worker(drain_sec=0) as hanging:
        page = visit(hanging)
        run(pane(page), ENDLESS)
        expect(pane(page).get_by_role("log")).to_contain_text("w")
        expect(page.locator("#status")).to_have_text("healthy")
        hanging.process.send_signal(signal.SIGSTOP)
        try:
            pane(page).get_by_role("button", name="Stop").click()
            expect(page.locator("#status")).to_have_text("the worker is away", timeout=15_000)
            expect(pane(page).locator(".failed")).to_contain_text("the worker does not answer within 5 s")
        finally:
            hanging.process.send_signal(signal.SIGCONT)
        expect(page.locator("#status")).to_have_text("healthy")


def test_a_group_is_stopped(visit: Open, shown: RunningWorker) -> None:
    """Also jobs of other clients."""
    page = visit(shown)
    streams = [shown.execute(fresh_id("grouped"), SLOW, group="page-1") for _ in range(2)]
    page.get_by_role("button", name="Stop all of group page-1").first.click()
    for stream in streams:
        assert stream.finished().events[-1].data["code"] == "CANCELLED"


def test_an_ended_job_has_no_stop(visit: Open, shown: RunningWorker) -> None:
    """Neither for itself nor for its group, whose name stays; a live one has both. The focus is not lost."""
    page = visit(shown)
    job_id = fresh_id("page-ended")
    stream = shown.execute(job_id, SLOW, group="page-ended-group").started()
    expect(row(page, job_id).get_by_role("button")).to_have_count(2)
    stop = page.get_by_role("button", name=f"Stop job {job_id}")
    stop.press("Enter")
    expect(row(page, job_id)).to_contain_text("cancelled")
    expect(row(page, job_id).get_by_role("button")).to_have_count(0)
    expect(row(page, job_id)).to_contain_text("page-ended-group")
    expect(page.get_by_role("group", name="Table of jobs")).to_be_focused()
    stream.finished()


def test_the_state_is_whole_on_a_phone(visit: Open, shown: RunningWorker) -> None:
    """However long the ids are, and without scrolling sideways; live and ended jobs alike."""
    ended, live = (fresh_id(f"page-{'long-' * 20}") for _ in range(2))
    shown.execute(ended, script(text="a")).finished()
    stream = shown.execute(live, SLOW).started()
    page = visit(shown)
    page.set_viewport_size({"width": 360, "height": 700})
    for job_id, state in ((live, "running"), (ended, "completed")):
        cell = row(page, job_id).locator("td").nth(2)
        expect(cell).to_have_text(state)
        box, table = cell.bounding_box(), page.get_by_role("group", name="Table of jobs").bounding_box()
        assert box is not None
        assert table is not None
        assert box["x"] + box["width"] <= min(360, table["x"] + table["width"])
    shown.cancel(live)
    stream.finished()


def test_the_timeline_of_a_receipt_is_to_scale(visit: Open, shown: RunningWorker) -> None:
    """Each mark is at the place of its time, from the cancel to the terminal event."""
    page = visit(shown)
    run(pane(page), SLOW)
    expect(pane(page).get_by_role("log")).to_contain_text("w")
    job_id = job_of(pane(page))
    pane(page).get_by_role("button", name="Stop").click()
    circles = pane(page).locator(".timeline circle")
    expect(circles).to_have_count(4)
    receipt = receipt_of(shown, job_id)
    at = [0.0, receipt["stopped_ms"], receipt["freed_ms"], receipt["terminal_ms"]]
    places = [float(circles.nth(number).get_attribute("cx") or "nan") for number in range(4)]
    scale = (places[3] - places[0]) / at[3]
    assert places == pytest.approx([places[0] + scale * one for one in at], abs=0.5)


def test_a_refusal_is_shown(visit: Open, shown: RunningWorker) -> None:
    """With the worker's message."""
    page = visit(shown)
    pane(page).get_by_text("Options").click()
    pane(page).get_by_label("max tokens").fill("999999")
    run(pane(page), "x")
    expect(pane(page).locator(".receipt")).to_contain_text(
        "and max_tokens (999999) need 1000000 tokens of context"
    )
    expect(pane(page).get_by_role("button", name="Run")).to_be_enabled()


def test_a_seed_of_64_bits_arrives_whole(visit: Open, shown: RunningWorker) -> None:
    """It is larger than a JavaScript number can hold."""
    page = visit(shown)
    pane(page).get_by_text("Options").click()
    pane(page).get_by_label("seed").fill("18446744073709551615")
    run(pane(page), SLOW)
    expect(pane(page).get_by_role("status")).to_contain_text("seed 18446744073709551615")
    pane(page).get_by_role("button", name="Stop").click()
    expect(pane(page).get_by_role("status")).to_have_text("cancelled (client)")


def test_a_seed_that_is_not_in_digits_is_reported(visit: Open, shown: RunningWorker) -> None:
    """A field for numbers would accept it."""
    page = visit(shown)
    pane(page).get_by_text("Options").click()
    pane(page).get_by_label("seed").fill("1e3")
    run(pane(page), "x")
    expect(pane(page).locator(".failed")).to_have_text(
        "INVALID_REQUEST: seed is 1e3; it must be a whole number, in digits"
    )
    expect(pane(page).get_by_role("button", name="Run")).to_be_enabled()


def test_an_engine_that_is_killed_costs_nothing_but_a_moment(visit: Open, shown: RunningWorker) -> None:
    """The text continues, and the narration shows what happened."""
    page = visit(shown)
    pane(page).get_by_text("Options").click()
    pane(page).get_by_label("max tokens").fill("60")
    pane(page).get_by_label("temperature").fill("0")
    run(pane(page), SLOW)
    expect(pane(page).get_by_role("log")).to_contain_text("w9 ")
    shown.signal_engine(signal.SIGKILL)
    expect(pane(page).get_by_role("status")).to_contain_text("60 tokens", timeout=20_000)
    expect(pane(page).get_by_role("log")).to_have_text("".join(f"w{n} " for n in range(60)))
    expect(page.locator("#narration")).to_contain_text("SIGKILL")


def test_a_worker_that_goes_away_and_comes_back(visit: Open) -> None:
    """The page reports it, and reconnects by itself."""
    with running_worker() as first:
        page = visit(first)
        expect(page.locator("#status")).to_have_text("healthy")
        port = first.port
    expect(page.locator("#status")).to_have_text("the worker is away")
    with running_worker(port=port):
        expect(page.locator("#status")).to_have_text("healthy", timeout=20_000)
        run(pane(page), script(text="back"))
        expect(pane(page).get_by_role("log")).to_have_text("back")


def test_the_rows_of_a_worker_are_not_those_of_its_successor(visit: Open) -> None:
    """Stop only aims at the job that its row shows."""
    with running_worker() as first:
        page = visit(first)
        first.execute("before", script(text="a")).finished()
        expect(row(page, "before")).to_be_visible()
        incarnation = first.record("before")["incarnation"]
        page.route("**/jobs?*", lambda route: route.abort())
        port = first.port
    with running_worker(port=port) as second:
        stream = second.execute("after", ENDLESS).tokens_seen(1)
        assert second.record("after")["incarnation"] != incarnation
        page.unroute("**/jobs?*")
        expect(row(page, "after")).to_be_visible()
        row(page, "after").get_by_role("button").click()
        stream.finished()
        receipt_of(second, "after")


def test_it_asks_for_a_key(visit: Open, tmp_path: Path) -> None:
    """A wrong key is reported; the right one is kept in the tab."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{KEY}\nberta-0123456789abcdef\n")
    with running_worker(api_key_file=str(keys)) as guarded:
        page = visit(guarded)
        field = page.get_by_label("API key", exact=True)
        expect(field).to_be_visible()
        field.fill("wrong-0123456789abcdef")
        field.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The worker does not know this key.")
        field.fill(KEY)
        field.press("Enter")
        expect(page.get_by_role("dialog")).to_be_hidden()
        run(pane(page), script(text="mine", token_ms=1))
        expect(pane(page).get_by_role("log")).to_have_text("mine")
        page.reload()
        expect(row(page, "console-")).to_have_count(1)
        expect(page.locator("#narration")).to_contain_text("ends after")


def test_it_shows_a_tenant_what_a_tenant_may_see(visit: Open, tmp_path: Path) -> None:
    """Figures for operators are dashes, with a hint; the rest of the page works. An operator sees all figures."""
    keys, operators = tmp_path / "keys.txt", tmp_path / "operators.txt"
    keys.write_text(f"{KEY}\n")
    operators.write_text("olga-0123456789abcdef\n")
    with running_worker(
        api_key_file=str(keys), operator_key_file=str(operators), private_load=True
    ) as guarded:
        for key, sees in ((KEY, False), ("olga-0123456789abcdef", True)):
            page = visit(guarded)
            page.evaluate("key => { sessionStorage.setItem('key', key); location.reload(); }", key)
            figure = re.compile(r"^\d+$" if sees else r"^\W$")
            for name in ("#running", "#queued", "#rate"):
                expect(page.locator(name)).to_have_text(figure)
            expect(page.get_by_text("need an operator's key")).to_be_visible(visible=not sees)
            run(pane(page), script(text="mine", token_ms=1))
            expect(pane(page).get_by_role("log")).to_have_text("mine")
        refused = [reported for reported in guarded.narration() if reported.get("http_status") == 403]
        assert len(refused) <= 2, "a page does not ask again and again for what its key may not see"


def test_every_control_has_a_name_and_a_place_in_the_order(visit: Open, shown: RunningWorker) -> None:
    """For users of screen readers."""
    page = visit(shown)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, meter")].filter((one) =>
            !(one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim())
        ).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the prompts"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_found_by_those_who_check_pages(
    visit: Open, shown: RunningWorker, scheme: Literal["light", "dark"]
) -> None:
    """axe-core, with everything on the page: contrasts, names, roles, order; a receipt and a refusal too."""
    page = visit(shown)
    page.emulate_media(color_scheme=scheme)
    run(pane(page), SLOW)
    expect(pane(page).get_by_role("log")).to_contain_text("w")
    pane(page).get_by_role("button", name="Stop").click()
    expect(pane(page).locator(".receipt")).to_contain_text("Stopped in decode after")
    page.get_by_role("button", name="Add another prompt").click()
    pane(page, 1).get_by_text("Options").click()
    pane(page, 1).get_by_label("max tokens").fill("999999")
    run(pane(page, 1), "x")
    expect(pane(page, 1).locator(".failed")).to_be_visible()
    found = Axe().run(page)
    assert found.response["passes"]
    assert found.violations_count == 0, found.generate_report()


def test_light_dark_and_narrow(visit: Open, shown: RunningWorker) -> None:
    """By the system's preference, by the button, and without scrolling sideways."""
    page = visit(shown)

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    assert light != dark
    page.get_by_role("button", name="Switch between light and dark").click()
    assert ground() == light
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
