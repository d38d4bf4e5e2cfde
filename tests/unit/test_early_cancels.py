"""The dispatcher: cancels that arrive before their job."""

import pytest

from tests.dispatching import dispatcher, error_code, running
from tests.fakes import at, execute, freed_at, stop_request, submit
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Ended
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.pending_cancels import PendingCancels
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import Target, TargetState

pytestmark = pytest.mark.usefixtures("no_job_ahead")


def test_a_cancel_that_arrives_before_its_job_wins_once() -> None:
    """The job ends at its acceptance, with only an `error`; the next use of the id is not affected (G8)."""
    it = dispatcher(max_queue=0)
    assert it.cancel("job-1", StopRequest(StopReason.CLIENT, 1.0, "cor-cancel"), at(1)) == (
        Target(TargetState.UNKNOWN),
        [],
    )
    job, effects = submit(it, execute(), "cor-1", at(3))
    assert effects == [Ended(job)], "and it needs no place in the queue"
    assert [event.name for event in job.events] == ["error"]
    assert error_code(job) == "CANCELLED"
    assert job.receipt is not None
    assert (job.receipt.terminal_ms, job.receipt.cancel_correlation_id) == (0.0, "cor-cancel")
    with pytest.raises(JobError, match="queue is full"):
        submit(it, execute(), "cor-2", at(3.5))


def test_a_cancel_is_forgotten_after_its_time() -> None:
    """Five seconds from the first cancel; repeated ones do not extend that."""
    it = dispatcher()
    it.cancel("job-1", stop_request(seconds=1), at(1))
    it.cancel("job-1", stop_request(seconds=4), at(4))
    assert submitted_at(it, 6.1).live


def test_the_cancel_of_an_ended_job_is_not_remembered() -> None:
    """The next use of its id runs."""
    it = dispatcher()
    job = running(it)
    it.finished(job.run, "stop", freed_at(2), at(2))
    it.cancel("job-1", stop_request(seconds=2.5), at(2.5))
    assert len(it.remembered) == 0
    assert submitted_at(it, 3).live


def test_an_id_whose_record_is_too_old_counts_as_unknown() -> None:
    """Its cancel is remembered, also on an idle worker that has not dropped the record yet."""
    it = dispatcher()
    job = running(it)
    it.finished(job.run, "stop", freed_at(2), at(2))
    assert it.cancel("job-1", stop_request(seconds=302), at(302))[0].state is TargetState.FINISHED
    assert it.cancel("job-1", stop_request(seconds=302.5), at(302.5))[0].state is TargetState.UNKNOWN
    assert not submitted_at(it, 303).live


def test_remembered_cancels_are_bounded() -> None:
    """The oldest are dropped."""
    remembered = PendingCancels(5.0, bound=3)
    for n in range(5):
        remembered.add(("", f"job-{n}"), stop_request(seconds=n / 10))
    assert len(remembered) == 3
    assert remembered.of(("", "job-1"), at(1)) is None
    assert remembered.of(("", "job-4"), at(1)) == stop_request(seconds=0.4)


def test_the_cancels_of_an_owner_evict_only_its_own() -> None:
    """Anna's early cancel still wins after Berta has sent 10,200 cancels for unused ids (G8, G9)."""
    it = dispatcher()
    it.cancel("job-1", stop_request(), at(1), "anna")
    for n in range(10_200):
        it.cancel(f"made-up-{n}", stop_request(), at(1.5), "berta")
    assert len(it.remembered) == 10_000
    job, _ = submit(it, execute(), "cor-1", at(2), "anna")
    assert [event.name for event in job.events] == ["error"]


def submitted_at(it: Dispatcher, seconds: float) -> Job:
    """Submit `job-1` at that second."""
    return submit(it, execute(), "cor-1", at(seconds))[0]
