"""Seeded histories of the whole worker in virtual time (G2 to G11).

Core, supervisor, engine loop, planner, readers: all real; engines die, hang, ignore their kill, fail to
start and abort steps at random; two owners use the same ids. `make simulate` plays thousands, `make test` a sample.
A seed that fails replays exactly, in any process, and says how: `SIMULATION_SEEDS=7:8 pytest tests/simulation`.
"""

import asyncio
import hashlib
import os
import subprocess
import sys
import traceback

import pytest

from tests.lanes import examples
from tests.simulation.clock import virtual_time
from tests.simulation.world import HOSTILE, SMALL_BOUND, World
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.jobs.tracker import JobTracker

GIVEN = [int(seed) for seed in os.environ.get("SIMULATION_SEEDS", "").split(":") if seed]
SEEDS = range(*GIVEN) if GIVEN else range(examples(40))
SAMPLE = 100
"""The number of histories that contain every kind of event."""
STILL_AT_IT = 500
"""Report progress after this many."""


def play(seed: int, *, attacks: int = 0) -> World:
    """One history."""
    with virtual_time() as loop:
        asyncio.set_event_loop(loop)
        world = World(seed, loop, attacks=attacks)
        try:
            loop.run_until_complete(world.live())
            assert not loop.failures, loop.failures
        except BaseException as error:
            error.add_note(f"replay with SIMULATION_SEEDS={seed}:{seed + 1}")
            raise
        finally:
            loop.cancel_everything()
            asyncio.set_event_loop(None)
        return world


def digest(world: World) -> str:
    """A digest of all events of a history, to the microsecond."""
    reported = [
        (seen.job.owner, record_of(seen.job), [event.data() for event in seen.job.events])
        for seen in world.seen
    ]
    return hashlib.sha256(repr((reported, len(world.engines), world.loop.time())).encode()).hexdigest()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [1000 + seed for seed in range(examples(5))])
def test_a_hostile_key_breaks_no_promise_to_the_others(seed: int) -> None:
    """It makes up ten times as many cancels, refused requests and ended jobs as are kept, while the others work:
    their early cancels still win, and their records and events are all kept."""
    world = play(seed, attacks=10 * SMALL_BOUND)
    assert world.seen
    assert 0 < len(world.worker.dispatcher.tracker.records(HOSTILE)) <= SMALL_BOUND


@pytest.mark.timeout(7200)
def test_histories_keep_every_guarantee() -> None:
    """In any order of events."""
    jobs = cancelled = requeues = engines = 0
    for number, seed in enumerate(SEEDS, start=1):
        world = play(seed)
        engines += len(world.engines)
        for seen in world.seen:
            receipt = seen.job.receipt
            jobs += 1
            requeues += seen.job.requeues > 0
            cancelled += receipt is not None and receipt.reason is StopReason.CLIENT
        if number % STILL_AT_IT == 0:
            print(f"{number} histories", flush=True)
    print(
        f"{len(SEEDS)} histories: {jobs} jobs, {cancelled} of them cancelled by clients, "
        f"{requeues} requeues, {engines} engines"
    )
    if len(SEEDS) >= SAMPLE:
        assert cancelled > jobs / 10, "too few cancels"
        assert requeues > 0, "nothing was requeued: too few faults"
        assert engines > len(SEEDS)


def test_a_seed_replays_exactly_in_another_process() -> None:
    """Event for event and record for record: nothing depends on the order of a set, on a real clock, or on memory."""
    program = (
        "import sys; from tests.simulation.test_histories import *; print(digest(play(int(sys.argv[1]))))"
    )
    for seed in (3, 11):
        seen = {
            subprocess.run(
                [sys.executable, "-c", program, str(seed)],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                check=True,
                text=True,
            ).stdout.strip()
            for hash_seed in ("1", "2")
        }
        assert seen == {digest(play(seed))}


def test_a_defect_is_found_and_its_seed_says_how_to_play_it_again_and_fails_again_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here: jobs are found by their id, whoever asks. So a client cancels what is another's."""

    def live_whosever(tracker: JobTracker, job_id: str, owner: str = "") -> Job | None:
        return next((job for job in tracker if job.job_id == job_id), None)

    monkeypatch.setattr(JobTracker, "live", live_whosever)
    failing = next(seed for seed in range(100) if failure(seed) is not None)
    found, again = failure(failing), failure(failing)
    assert found is not None
    assert found.__notes__ == [f"replay with SIMULATION_SEEDS={failing}:{failing + 1}"]
    assert again is not None
    # Not every assertion has a message, but each has its place.
    assert str(found).splitlines()[:1] == str(again).splitlines()[:1]
    assert place_of(found) == place_of(again)


def place_of(error: AssertionError) -> int | None:
    """The line of the failed assertion."""
    return traceback.extract_tb(error.__traceback__)[-1].lineno


def failure(seed: int) -> AssertionError | None:
    """The failed assertion of a history."""
    try:
        play(seed)
    except AssertionError as error:
        return error
    return None
