"""Ids of refused requests: bounded in number and age; no owner pushes out another's."""

import pytest

from tests.dispatching import dispatcher, submitted
from tests.fakes import at, execute, stop_request, submit
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.refused_requests import RefusedRequests


def test_the_latest_ids_of_each_owner_are_kept() -> None:
    """An owner with many refused requests displaces only its own ids."""
    refused = RefusedRequests(keep_sec=10, bound=4)
    refused.add(("anna", "job-0"), at(0))
    for n in range(5):
        refused.add(("berta", f"job-{n}"), at(1))
    assert len(refused) == 4
    assert refused.has(("anna", "job-0"), at(2))
    assert [refused.has(("berta", f"job-{n}"), at(2)) for n in range(5)] == [False, False, True, True, True]


def test_an_id_is_forgotten_after_its_time_and_when_a_request_is_accepted() -> None:
    """Another refusal restarts the time."""
    refused = RefusedRequests(keep_sec=10)
    for seconds in (0, 5):
        refused.add(("", "job-1"), at(seconds))
    refused.add(("", "job-2"), at(6))
    refused.accepted(("", "job-2"))
    assert not refused.has(("", "job-2"), at(7))
    assert refused.has(("", "job-1"), at(15))
    assert not refused.has(("", "job-1"), at(15.1))
    assert len(refused) == 0


@pytest.mark.parametrize("code", [ErrorCode.DRAINING, ErrorCode.QUEUE_FULL])
def test_a_cancel_that_follows_a_refused_request_is_not_remembered(code: ErrorCode) -> None:
    """Also when the core itself refuses the request; another owner's cancel of that id is remembered."""
    it = dispatcher(max_queue=0)
    it.draining = code is ErrorCode.DRAINING
    with pytest.raises(JobError) as caught:
        submit(it, execute("job-1"), "cor-1", at(0), "anna")
    assert caught.value.code is code
    for owner, remembered in (("anna", 0), ("berta", 1)):
        it.cancel("job-1", stop_request(seconds=1), at(1), owner)
        assert len(it.remembered) == remembered


def test_a_refusal_while_the_id_is_live_changes_nothing_for_its_job() -> None:
    """The cancel is for the live job, and the next use of the id runs."""
    it = dispatcher()
    job = submitted(it)
    it.refused("job-1", at(0.5))
    it.cancel("job-1", stop_request(seconds=1), at(1))
    assert not job.live
    assert submitted(it).live
