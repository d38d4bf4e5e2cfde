"""A job replaces older ones with the same key: in one step, and only if it is accepted."""

from collections.abc import Callable

import pytest

from tests.dispatching import ENGINE, PROMPT, dispatcher, running
from tests.fakes import at, execute, freed_at, snapshot_of, stop_request, submit
from worker_orcd.jobs import queue
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Begin, Ended, SendStop, Submit
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End, Error
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import TargetState


@pytest.fixture(autouse=True)
def no_job_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is handed only jobs that it has slots for: so the others show what the queue does."""
    monkeypatch.setattr(queue, "AHEAD", 0)


def newer(it: Dispatcher, job_id: str = "new", seconds: float = 2, **given: object) -> Job:
    """A job that supersedes those with key `k`."""
    return submit(it, execute(job_id, **{"supersedes": "k", **given}), "cor-new", at(seconds))[0]


def test_the_old_job_is_stopped_in_the_step_that_accepts_the_new_one() -> None:
    """The engine gets the stop before anything of the new job; record and receipt name the new job."""
    it = dispatcher()
    old = running(it, "old", supersedes="k")
    submitted = it.submit([execute("new", supersedes="k")], "cor-new", at(2))
    (new,) = submitted.jobs
    assert submitted.superseded == [old]
    assert submitted.effects == [SendStop(old), Submit(new)]
    assert old.stop == StopRequest(StopReason.SUPERSEDED, 2, "cor-new", "new")
    assert it.stopped(old.run, freed_at(2.01), at(2.01)) == [Ended(old)]
    assert isinstance(old.terminal, Error)
    assert old.terminal.details["reason"] == "superseded"
    assert old.receipt is not None
    assert (old.receipt.reason, old.receipt.cancel_correlation_id) == (StopReason.SUPERSEDED, "cor-new")
    record = it.tracker.record("old")
    assert record is not None
    assert (record["supersedes"], record["superseded_by"]) == ("k", "new")
    assert record_of(new)["superseded_by"] is None
    assert Begin(new) in it.accepted(new.run, PROMPT, at(3))


@pytest.mark.parametrize("other", [{"supersedes": "k2"}, {"supersedes": "K"}, {"group": "k"}, {}])
def test_no_other_job_is_superseded(other: dict[str, object]) -> None:
    """Neither a job with another key, nor one whose id or group equals the key."""
    it = dispatcher()
    running(it, "k", **other)
    assert it.submit([execute("new", supersedes="k")], "cor", at(2)).superseded == []


def test_another_owners_job_is_not_superseded() -> None:
    """Equal keys of two owners are unrelated (G9)."""
    it = dispatcher()
    theirs, _ = submit(it, execute("old", supersedes="k"), "cor", at(0), "anna")
    assert it.submit([execute("new", supersedes="k")], "cor", at(2), "berta").superseded == []
    assert theirs.live


def _fill(it: Dispatcher) -> None:
    for number in range(2):
        submit(it, execute(f"other-{number}"), "cor", at(1))


def _use_id(it: Dispatcher) -> None:
    submit(it, execute("new"), "cor", at(1))


def _drain(it: Dispatcher) -> None:
    it.draining = True


@pytest.mark.parametrize(
    ("refusing", "code"),
    [(_fill, ErrorCode.QUEUE_FULL), (_use_id, ErrorCode.JOB_ID_IN_USE), (_drain, ErrorCode.DRAINING)],
)
def test_a_refused_job_supersedes_nothing(refusing: Callable[[Dispatcher], None], code: ErrorCode) -> None:
    """The old job continues."""
    it = dispatcher(max_queue=2)
    old = running(it, "old", supersedes="k")
    refusing(it)
    before = snapshot_of(old)
    with pytest.raises(JobError) as refused:
        newer(it)
    assert refused.value.code is code
    assert snapshot_of(old) == before


def test_several_jobs_of_a_request_are_refused_together() -> None:
    """If there is no place for the second job, the first one supersedes nothing."""
    it = dispatcher(max_queue=2)
    old = running(it, "old", supersedes="k")
    _fill(it)
    with pytest.raises(JobError):
        it.submit([execute("a", supersedes="k"), execute("a.1", supersedes="k")], "cor", at(2))
    assert not old.stop
    assert len(it.tracker) == 3


def test_jobs_of_one_request_do_not_supersede_each_other_and_are_superseded_together() -> None:
    """They are choices of one answer."""
    it = dispatcher()
    choices = it.submit([execute("a", supersedes="k"), execute("a.1", supersedes="k")], "cor", at(1)).jobs
    assert [job.live for job in choices] == [True, True]
    assert it.submit([execute("b", supersedes="k")], "cor", at(2)).superseded == choices
    assert [job.live for job in choices] == [False, False]


def test_the_place_of_a_superseded_job_in_a_full_queue_is_free_for_the_new_one() -> None:
    """As often as the user types a letter."""
    it = dispatcher(ready=False, max_queue=1)
    jobs = [newer(it, f"key-{number}", number) for number in range(5)]
    assert [job.live for job in jobs] == [False] * 4 + [True]
    assert len(it.queue) == 1


def test_the_new_job_takes_the_place_of_the_old_one_in_the_queue() -> None:
    """Jobs that came in between wait behind it, as they waited behind the old one."""
    it = dispatcher(ready=False)
    old = newer(it, "old", 0)
    between, _ = submit(it, execute("between"), "cor", at(1))
    new = newer(it, "new", 2)
    assert not old.live
    assert list(it.queue) == [new, between]
    it.engine_ready(ENGINE)
    first, _ = running(it, "first"), running(it, "second")
    for job in (between, new):  # Their prompts are counted in the other order, and the engine is full.
        assert it.accepted(job.run, PROMPT, at(4)) == []
    effects = it.finished(first.run, "stop", freed_at(5), at(5))
    assert [effect.job for effect in effects if isinstance(effect, Begin)] == [new]


def test_a_place_is_handed_on_no_longer_than_one_job_may_have_it() -> None:
    """Otherwise a chain of jobs would keep others waiting without end."""
    it = dispatcher(ready=False)
    newer(it, "old", 0, timeout_ms=10_000)
    between, _ = submit(it, execute("between"), "cor", at(1))
    first = newer(it, "first", 9, timeout_ms=10_000)
    assert list(it.queue) == [first, between]
    second = newer(it, "second", 11, timeout_ms=10_000)
    assert list(it.queue) == [between, second]


def test_of_two_that_supersede_each_other_the_later_one_survives() -> None:
    """Whatever state the first one has reached."""
    it = dispatcher()
    old = running(it, "old", supersedes="k")
    first, second = newer(it, "first"), newer(it, "second", 2.1)
    assert [job.state for job in (old, first, second)] == [State.STOPPING, State.ENDED, State.QUEUED]
    assert old.stop is not None
    assert old.stop.superseded_by == "first"


def test_a_cancel_that_was_first_stays_the_reason() -> None:
    """And a cancel of a job that is superseded already changes nothing."""
    it = dispatcher()
    cancelled = running(it, "old", supersedes="k")
    it.cancel("old", stop_request(), at(2))
    submitted = it.submit([execute("new", supersedes="k")], "cor", at(2))
    assert submitted.superseded == []
    it.stopped(cancelled.run, freed_at(2.1), at(2.1))
    assert cancelled.receipt is not None
    assert cancelled.receipt.reason is StopReason.CLIENT
    newer(it, "newest", 3)
    assert it.cancel("new", stop_request(), at(4))[0].state is TargetState.FINISHED
    (superseded,) = submitted.jobs
    assert superseded.receipt is not None
    assert superseded.receipt.reason is StopReason.SUPERSEDED


def test_a_job_that_was_cancelled_before_it_arrived_supersedes_nothing() -> None:
    """It is over already; a newer one may run."""
    it = dispatcher()
    old = running(it, "old", supersedes="k")
    it.cancel("new", stop_request(), at(1.5))
    assert not newer(it).live
    assert not old.stop


def test_a_retry_of_a_cancelled_job_supersedes_nothing() -> None:
    """Its client may have sent something newer meanwhile."""
    it = dispatcher()
    first = running(it, "first", supersedes="k")
    it.cancel("first", stop_request(), at(2))
    current = newer(it, "second", 2.5)
    retry_of = it.cancelled_lately("first", at(3))
    it.stopped(first.run, freed_at(2.6), at(2.6))
    retried, _ = submit(it, execute("first", supersedes="k"), "cor", at(3), retry_of=retry_of)
    assert (retried.live, current.live) == (False, True)


def test_a_job_that_ends_while_its_stop_is_on_its_way_ends_once() -> None:
    """The stop request came before its last token, so it counts. The new job is not affected."""
    it = dispatcher()
    old = running(it, "old", supersedes="k")
    new = newer(it)
    assert Ended(old) in it.finished(old.run, "length", freed_at(2.1), at(2.1))
    assert isinstance(old.terminal, Error)
    assert it.stopped(old.run, freed_at(2.2), at(2.2)) == []
    assert new.live


def test_a_job_that_has_just_ended_is_not_superseded() -> None:
    """It keeps its natural end."""
    it = dispatcher()
    old = running(it, "old", supersedes="k")
    it.finished(old.run, "stop", freed_at(1.9), at(1.9))
    assert newer(it).live
    assert isinstance(old.terminal, End)
