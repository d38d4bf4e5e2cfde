"""JobTracker: a registered job is found by its id, an unregistered one by its record (M0-W-1330)."""

import json

import pytest

from tests.fakes import at, freed_at, queued_job, running_job, snapshot_of, stop_request
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.tracker import JobTracker


def ended(tracker: JobTracker, job_id: str, run: int, seconds: float) -> None:
    """Register a job and end it at that second."""
    job = running_job(job_id, run=run)
    tracker.register(job)
    job.finished(at(seconds), "stop", freed_at(seconds))
    tracker.unregister(job, at(seconds))


def test_a_registered_job_is_live() -> None:
    """It has no stop request."""
    tracker, job = JobTracker(), queued_job()
    tracker.register(job)
    assert job.stop is None
    assert tracker.live("job-1") is job
    assert len(tracker) == 1


def test_unregister_removes_and_keeps_a_record() -> None:
    """The id is free, by id and by run, and what happened can be looked up."""
    tracker = JobTracker()
    ended(tracker, "job-1", 1, 3)
    assert len(tracker) == 0
    assert tracker.live("job-1") is None
    assert tracker.by_run(1) is None
    record = tracker.record("job-1")
    assert record is not None
    assert record["state"] == "completed"


def test_unregister_twice_is_harmless() -> None:
    """The second call changes neither the record nor another job."""
    tracker, job = JobTracker(), running_job()
    tracker.register(job)
    job.finished(at(3), "stop", freed_at(3))
    tracker.unregister(job, at(3))
    successor = queued_job(run=2)
    tracker.register(successor)
    tracker.unregister(job, at(4))
    assert tracker.live("job-1") is successor


def test_a_live_id_is_in_use() -> None:
    """A second job with the id is refused; the first one does not change."""
    tracker, job = JobTracker(), running_job()
    tracker.register(job)
    before = snapshot_of(job)
    with pytest.raises(JobError) as refused:
        tracker.register(queued_job(run=2))
    assert (refused.value.code, refused.value.http_status, refused.value.param) == (
        ErrorCode.JOB_ID_IN_USE,
        409,
        "job_id",
    )
    assert not refused.value.retriable
    assert tracker.live("job-1") is job
    assert tracker.by_run(2) is None
    assert snapshot_of(job) == before


def test_an_id_in_stopping_is_still_in_use() -> None:
    """Cells of a job that was asked to stop may not be free yet."""
    tracker, job = JobTracker(), running_job()
    tracker.register(job)
    job.request_stop(stop_request())
    assert job.state is State.STOPPING
    with pytest.raises(JobError):
        tracker.register(queued_job(run=2))


def test_an_id_can_be_used_again_after_its_end() -> None:
    """The new incarnation has its own stop request, run and record."""
    tracker = JobTracker()
    first = running_job(run=1)
    tracker.register(first)
    first.request_stop(stop_request())
    first.stopped(at(3), freed_at(3))
    tracker.unregister(first, at(3))
    second = running_job(run=2)
    tracker.register(second)
    assert first.stop
    assert not second.stop
    assert not tracker.ended("job-1")
    assert tracker.by_run(2) is second
    second.finished(at(5), "length", freed_at(5))
    tracker.unregister(second, at(5))
    record = tracker.record("job-1")
    assert record is not None
    assert (record["incarnation"], record["state"]) == ("0-2", "completed")
    assert len(tracker.records()) == 1


@pytest.mark.parametrize("other", ["job-10", "job-", "job", "JOB-1", "job-1.", "xjob-1"])
def test_an_id_matches_exactly_or_not_at_all(other: str) -> None:
    """`job-1` finds neither `job-10` nor any other id that resembles it."""
    tracker, one, ten = JobTracker(), running_job("job-1", run=1), running_job(other, run=2)
    tracker.register(one)
    tracker.register(ten)
    assert tracker.live("job-1") is one
    one.finished(at(3), "stop", freed_at(3))
    tracker.unregister(one, at(3))
    assert tracker.live("job-1") is None
    assert tracker.live(other) is ten


def test_records_are_bounded_in_number_and_the_oldest_go_first() -> None:
    """The newest `keep` remain."""
    tracker = JobTracker(keep=3)
    for n in range(5):
        ended(tracker, f"job-{n}", n, float(n))
    assert [record["job_id"] for record in tracker.records()] == ["job-4", "job-3", "job-2"]
    assert tracker.record("job-1") is None
    assert not tracker.ended("job-1")


def test_records_are_bounded_in_age() -> None:
    """After `keep_sec` a record is gone; at that age it is still there."""
    tracker = JobTracker(keep_sec=10)
    ended(tracker, "old", 1, 0)
    ended(tracker, "young", 2, 5)
    tracker.forget_old(at(10))
    assert tracker.ended("old")
    tracker.forget_old(at(10.5))
    assert not tracker.ended("old")
    assert tracker.ended("young")


def test_what_ended_jobs_said_is_bounded_together_and_their_records_stay() -> None:
    """The oldest lose their events first."""
    tracker = JobTracker(keep_bytes=250)
    for n in range(4):
        job = running_job(f"job-{n}", run=n)
        tracker.register(job)
        job.token(at(2), 5, "x" * 96)
        job.finished(at(3), "stop", freed_at(3))
        tracker.unregister(job, at(3))
        assert job.kept_bytes == 100
    kept = [tracker.ended_job(f"job-{n}") for n in range(4)]
    assert [job is not None for job in kept] == [False, False, True, True]
    assert [event.name for event in kept[3].events] == ["started", "token", "end"] if kept[3] else False
    assert len(tracker.records()) == 4


def test_an_id_used_again_counts_as_young() -> None:
    """Its age counts from its last use, so an older id is dropped first."""
    tracker = JobTracker(keep=2)
    ended(tracker, "again", 1, 0)
    ended(tracker, "once", 2, 1)
    ended(tracker, "again", 3, 2)
    ended(tracker, "last", 4, 3)
    assert [record["job_id"] for record in tracker.records()] == ["last", "again"]


def test_the_defaults_keep_five_minutes_and_ten_thousand() -> None:
    """As the contract says (5)."""
    tracker = JobTracker()
    ended(tracker, "job-x", 1, 0)
    tracker.forget_old(at(300))
    assert tracker.ended("job-x")
    tracker.forget_old(at(300.1))
    assert not tracker.ended("job-x")
    for n in range(10_001):
        ended(tracker, f"job-{n}", n, 400)
    assert len(tracker.records()) == 10_000


def test_a_record_holds_no_tokens_no_prompt_and_no_text() -> None:
    """Counts only: neither ids nor what a reader saw outlive the job."""
    tracker = JobTracker()
    job = running_job(prompt="a secret prompt")
    tracker.register(job)
    job.token(at(2), 4711, "a secret answer")
    job.finished(at(3), "stop", freed_at(3))
    tracker.unregister(job, at(3))
    record = tracker.record("job-1")
    assert record is not None
    assert "secret" not in json.dumps(record)
    assert "4711" not in json.dumps(record)
    assert (record["tokens_out"], record["prompt_tokens"]) == (1, 3)
    assert not any(isinstance(value, list | tuple) for value in record.values())


def test_the_record_of_a_live_job_shows_it_as_it_is_now() -> None:
    """A live id's record is its own, not that of an earlier use."""
    tracker = JobTracker()
    ended(tracker, "job-1", 1, 1)
    tracker.register(queued_job(run=2))
    record = tracker.record("job-1")
    assert record is not None
    assert (record["incarnation"], record["state"]) == ("0-2", "queued")


def test_jobs_can_be_unregistered_while_they_are_walked() -> None:
    """Iteration covers the jobs that were live when it began, oldest first."""
    tracker = JobTracker()
    for n in range(3):
        tracker.register(running_job(f"job-{n}", run=n))
    walked = []
    for job in tracker:
        walked.append(job.job_id)
        tracker.unregister(job, at(1))
    assert walked == ["job-0", "job-1", "job-2"]
    assert len(tracker) == 0


def test_one_owners_jobs_push_out_only_its_own_records_and_events() -> None:
    """Anna's jobs are kept for their five minutes, however many jobs Berta has end (G9, G10)."""
    tracker = JobTracker(keep=10, keep_bytes=1000)
    for owner, count in (("anna", 4), ("berta", 40)):
        for n in range(count):
            job = running_job(f"job-{n}", run=n + 1000 * (owner == "berta"))
            job.owner = owner
            tracker.register(job)
            job.token(at(2), 5, "x" * 96)
            job.finished(at(3), "stop", freed_at(3))
            tracker.unregister(job, at(3))
    assert [record["job_id"] for record in tracker.records("anna")] == ["job-3", "job-2", "job-1", "job-0"]
    assert all(tracker.ended_job(f"job-{n}", "anna") is not None for n in range(4))
    assert len(tracker.records("berta")) == 6
