"""The dispatcher: stops, timeouts and groups."""

import pytest

from tests.dispatching import ENGINE, PROMPT, dispatcher, error_code, running, submitted
from tests.fakes import at, execute, freed_at, snapshot_of, stop_request, submit
from worker_orcd.jobs.effects import Begin, Drop, Ended, SendStop, Submit
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.jobs.stop_target import Target, TargetState

pytestmark = pytest.mark.usefixtures("no_job_ahead")


def test_a_running_job_ends_with_the_engines_confirmation_of_its_stop() -> None:
    """Only the engine's confirmation frees its slot and starts the next job (G4)."""
    it = dispatcher()
    job = running(it, "job-1")
    running(it, "job-2")
    waiting = submitted(it, "job-3")
    it.accepted(waiting.run, PROMPT, at(2))
    assert it.cancel("job-1", stop_request(), at(2)) == (Target(TargetState.LIVE, job), [SendStop(job)])
    assert it.queue.running == 2
    assert it.stopped(job.run, Release(2.1, 2.2, 5, 0, 10), at(2.3)) == [Ended(job), Begin(waiting)]
    assert error_code(job) == "CANCELLED"
    assert job.receipt is not None
    assert job.receipt.prompt_tokens == 10


def test_a_waiting_job_ends_at_once_without_the_engine() -> None:
    """There is no SendStop, since the engine has no run of this job."""
    it = dispatcher()
    job = submitted(it)
    assert it.cancel("job-1", stop_request(), at(2)) == (
        Target(TargetState.LIVE, job),
        [Ended(job), Drop(job)],
    )
    assert error_code(job) == "CANCELLED"
    assert len(it.queue) == 0
    assert [event.name for event in job.events] == ["error"]


def test_the_engine_drops_the_prompt_of_a_queued_job_that_is_cancelled() -> None:
    """The job ends without the engine's confirmation."""
    it = dispatcher()
    running(it, "job-0"), running(it, "job-1")
    waiting = submitted(it, "job-2")
    assert it.accepted(waiting.run, PROMPT, at(1)) == []
    assert it.cancel("job-2", stop_request(), at(2)) == (
        Target(TargetState.LIVE, waiting),
        [Ended(waiting), Drop(waiting)],
    )


@pytest.mark.parametrize("times", [1, 2, 10])
def test_repeated_cancels_equal_one(times: int) -> None:
    """Only the first has an effect; later ones, of whatever reason, change nothing (G3)."""
    it = dispatcher()
    job = running(it)
    it.cancel("job-1", stop_request(), at(2))
    before = snapshot_of(job)
    for n in range(times):
        ignored: object = (Target(TargetState.STOPPING, job), [])
        assert it.cancel("job-1", stop_request(seconds=3.0 + n), at(3 + n)) == ignored
        assert it.stop(job, stop_request(StopReason.SHUTDOWN, 3.0 + n), at(3 + n)) == ignored
    assert snapshot_of(job) == before


def test_a_cancel_returns_the_state_of_its_target() -> None:
    """Unknown, live, stopping or finished; a cancel is never an error."""
    it = dispatcher()
    targets = [it.cancel("job-2", stop_request(), at(2))[0]]
    job = running(it)
    targets.append(it.cancel("job-1", stop_request(), at(2))[0])
    targets.append(it.cancel("job-1", stop_request(), at(2))[0])
    it.stopped(job.run, freed_at(3), at(3))
    targets.append(it.cancel("job-1", stop_request(), at(4))[0])
    assert targets == [
        Target(TargetState.UNKNOWN),
        Target(TargetState.LIVE, job),
        Target(TargetState.STOPPING, job),
        Target(TargetState.FINISHED),
    ]


def test_a_natural_end_that_crosses_a_stop_ends_once() -> None:
    """The step that ended the job was running when the stop came; the later confirmation has no effect."""
    it = dispatcher()
    job = running(it)
    it.cancel("job-1", stop_request(), at(2))
    assert it.finished(job.run, "length", freed_at(2.1), at(2.2)) == [Ended(job)]
    events = list(job.events)
    assert it.stopped(job.run, freed_at(2.3), at(2.3)) == []
    assert list(job.events) == events
    assert error_code(job) == "CANCELLED"


def test_stopping_all_jobs_ends_waiting_ones_and_stops_running_ones() -> None:
    """No waiting job is started in the place of another one, only to be stopped too."""
    it = dispatcher()
    first, second = running(it, "job-1", max_tokens=40), running(it, "job-2", max_tokens=10)
    large, small = submitted(it, "job-3", max_tokens=40), submitted(it, "job-4", max_tokens=10)
    it.accepted(large.run, PROMPT, at(1))
    it.accepted(small.run, PROMPT, at(1))
    it.finished(second.run, "stop", freed_at(2), at(2))
    assert it.queue.in_engine == (first, large), "it took the free slot"
    late = submitted(it, "job-5")
    stop = stop_request(StopReason.SHUTDOWN)
    _, effects = it.stop_together([(job, stop) for job in it.tracker], at(3))
    assert sorted(effect.job.job_id for effect in effects if isinstance(effect, SendStop)) == [
        "job-1",
        "job-3",
    ]
    assert sorted(effect.job.job_id for effect in effects if isinstance(effect, Ended)) == ["job-4", "job-5"]
    assert not any(isinstance(effect, Begin) for effect in effects)
    assert [event.name for event in late.events] == ["error"]
    assert first.stop == stop_request(StopReason.SHUTDOWN)


def test_stopping_all_jobs_starts_none_that_a_larger_one_was_blocking() -> None:
    """When the large head ends, the small job would fit, but ends unstarted as well."""
    it = dispatcher()
    running(it, "job-1", max_tokens=40)
    large, small = submitted(it, "job-2", prompt="large"), submitted(it, "job-3", max_tokens=5)
    it.accepted(large.run, (1,) * 20, at(1))
    it.accepted(small.run, PROMPT, at(1))
    assert it.queue.running == 1, "60 cells do not fit beside 50"
    stop = stop_request(StopReason.SHUTDOWN)
    _, effects = it.stop_together([(job, stop) for job in it.tracker], at(3))
    assert not any(isinstance(effect, Begin) for effect in effects)
    assert [event.name for event in small.events] == ["error"]


def test_jobs_whose_time_limit_has_passed_are_stopped_in_any_state() -> None:
    """Queue time counts; a running job waits for the engine's confirmation, as with any stop."""
    it = dispatcher()
    runs = running(it, "job-1", timeout_ms=2000)
    waits = submitted(it, "job-2", timeout_ms=3000)
    patient = submitted(it, "job-3")
    assert it.next_deadline() == 2.0
    assert it.expire(at(1.9)) == ([], [])
    late, effects = it.expire(at(3.0))
    assert late == [runs, waits]
    assert sorted(effects, key=repr) == sorted([SendStop(runs), Ended(waits), Drop(waits)], key=repr)
    assert error_code(waits) == "INFERENCE_TIMEOUT"
    assert runs.state is State.STOPPING
    assert patient.live
    it.stopped(runs.run, freed_at(3.1), at(3.1))
    assert error_code(runs) == "INFERENCE_TIMEOUT"


def test_a_job_times_out_once() -> None:
    """A job that is being stopped does not time out again, and `next_deadline` ignores it."""
    it = dispatcher()
    running(it, "job-1", timeout_ms=2000)
    it.expire(at(2))
    assert it.next_deadline() is None
    assert it.expire(at(2.5)) == ([], [])


def test_a_timeout_during_a_cancel_changes_nothing() -> None:
    """The first reason wins."""
    it = dispatcher()
    job = running(it, timeout_ms=2000)
    it.cancel("job-1", stop_request(seconds=1.5), at(1.5))
    assert it.expire(at(5)) == ([], [])
    it.stopped(job.run, freed_at(5.1), at(5.1))
    assert error_code(job) == "CANCELLED"


def test_a_queued_job_that_times_out_is_not_started_in_place_of_another_one() -> None:
    """Both time out at the same moment."""
    it = dispatcher()
    running(it, "job-0")
    asked, second = submitted(it, "job-1", timeout_ms=2000), submitted(it, "job-2", timeout_ms=2000)
    it.accepted(asked.run, PROMPT, at(1))
    it.accepted(second.run, PROMPT, at(1))
    it.engine_lost("it is dead", at(1.5))
    late, effects = it.expire(at(2))
    assert late == [asked, second]
    assert effects == [Ended(asked), Ended(second)]
    assert [event.name for event in second.events] == ["error"]


def test_old_records_are_dropped_when_time_passes() -> None:
    """`expire` is the core's only clock."""
    it = dispatcher()
    job = running(it)
    it.finished(job.run, "stop", freed_at(2), at(2))
    it.expire(at(302))
    assert it.tracker.ended("job-1")
    it.expire(at(303))
    assert not it.tracker.ended("job-1")


def test_a_group_is_stopped_as_a_whole_and_by_its_exact_name() -> None:
    """A cancel of `g` stops neither jobs of `g1` nor jobs without a group."""
    it = dispatcher()
    members = [submitted(it, f"job-{n}", group="g") for n in (1, 2)]
    others = [submitted(it, "job-3", group="g1"), submitted(it, "job-4"), submitted(it, "g")]
    targets, effects = it.stop_group("g", stop_request(), at(2))
    assert targets == [Target(TargetState.LIVE, job) for job in members]
    assert effects == [effect for job in members for effect in (Ended(job), Drop(job))]
    assert all(job.live for job in others)
    assert it.stop_group("g", stop_request(), at(2)) == ([], [])


def test_a_stop_without_confirmation_is_given_up_and_reported() -> None:
    """The terminal event is written at the deadline; waiting jobs are not handed to an engine that does not
    answer."""
    it = dispatcher()
    job, beside = running(it, "job-1"), running(it, "job-2")
    waiting = submitted(it, "job-3")
    it.accepted(waiting.run, PROMPT, at(1))
    it.cancel("job-1", stop_request(), at(2))
    assert it.give_up(job, at(7)) == [Ended(job)]
    assert job.receipt is not None
    assert job.receipt.freed_ms is None
    assert waiting.state is State.QUEUED
    assert submit(it, execute("job-4"), "cor-4", at(8))[1] == []
    assert it.engine_lost("it was killed", at(9)) == []
    assert beside.live
    effects = it.engine_ready(ENGINE)
    assert sorted(effect.job.job_id for effect in effects if isinstance(effect, Begin)) == ["job-2", "job-3"]
    assert next(effect.job.job_id for effect in effects if isinstance(effect, Submit)) == "job-4"


def test_only_a_stopping_job_is_given_up() -> None:
    """A job that runs without a stop request is not ended."""
    it = dispatcher()
    job = running(it)
    assert it.give_up(job, at(3)) == []
    assert job.state is State.RUNNING
