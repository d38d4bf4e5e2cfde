"""The dispatcher: the effects of each fact."""

import re

import pytest

from tests.fakes import at, execute, freed_at, snapshot_of, stop_request, submit
from worker_orcd.jobs import queue
from worker_orcd.jobs.dispatcher import Dispatcher, ReadyEngine
from worker_orcd.jobs.effects import Begin, Drop, Effect, Ended, SendStop, Submit
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import Error
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.pending_cancels import PendingCancels
from worker_orcd.jobs.preparing import MAX_PREPARING
from worker_orcd.jobs.queue import Capacity
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.request import Ceilings
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import Target, TargetState

ENGINE = ReadyEngine(Capacity(cells=100, cells_per_job=60, sequences=2), "a-model")
PROMPT = (1,) * 10


@pytest.fixture(autouse=True)
def no_job_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is handed only jobs that it has slots for: so the others show what the queue does."""
    monkeypatch.setattr(queue, "AHEAD", 0)


def dispatcher(*, ready: bool = True, max_queue: int = 10) -> Dispatcher:
    """A dispatcher, with an engine or still without."""
    it = Dispatcher(Ceilings(max_tokens_out=40, inference_timeout_sec=300.0), max_queue)
    if ready:
        it.engine_ready(ENGINE)
    return it


def submitted(it: Dispatcher, job_id: str = "job-1", **given: object) -> Job:
    """A job that was accepted at second 0."""
    return submit(it, execute(job_id, **given), f"cor-{job_id}", at(0))[0]


def running(it: Dispatcher, job_id: str = "job-1", **given: object) -> Job:
    """A job that has a slot since second 1."""
    job = submitted(it, job_id, **given)
    assert Begin(job) in it.accepted(job.run, PROMPT, at(1))
    assert it.started(job.run, at(1)) is job
    return job


def error_code(job: Job) -> str:
    """The code of a job's `error` event."""
    assert isinstance(job.terminal, Error)
    return job.terminal.code.value


# Taking jobs in.


def test_a_job_is_prepared_when_it_is_accepted() -> None:
    """Its prompt is counted while it waits."""
    it = dispatcher()
    job, effects = submit(it, execute(), "cor-1", at(0))
    assert effects == [Submit(job)]
    assert (job.state, job.phase, job.correlation_id, job.seed) == (State.QUEUED, Phase.QUEUED, "cor-1", 7)
    assert it.tracker.live("job-1") is job
    assert len(it.queue) == 1


def test_a_job_is_taken_while_the_model_is_loading_and_waits() -> None:
    """No engine can prepare it yet; its phase says why it waits."""
    it = dispatcher(ready=False)
    job, effects = submit(it, execute(), "cor-1", at(0))
    assert effects == []
    assert job.phase is Phase.LOADING


def test_each_use_of_an_id_has_its_own_run() -> None:
    """A message that is meant for one incarnation cannot reach another (G8)."""
    it = dispatcher()
    first = submitted(it)
    it.cancel("job-1", stop_request(), at(2))
    second = submitted(it)
    assert first.run != second.run
    assert not second.stop


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    """The refusal is 429 and retriable, and nothing has changed."""
    it = dispatcher(ready=False, max_queue=2)
    submitted(it, "job-1")
    submitted(it, "job-2")
    with pytest.raises(JobError) as refused:
        submitted(it, "job-3")
    assert (refused.value.code, refused.value.http_status) == (ErrorCode.QUEUE_FULL, 429)
    assert refused.value.retriable
    assert refused.value.retry_after_sec == 1
    assert it.tracker.live("job-3") is None
    assert len(it.queue) == 2


def test_running_jobs_do_not_fill_the_queue() -> None:
    """The bound counts waiting jobs only."""
    it = dispatcher(max_queue=1)
    running(it, "job-1")
    running(it, "job-2")
    submitted(it, "job-3")
    with pytest.raises(JobError):
        submitted(it, "job-4")


def test_a_live_id_is_in_use_even_when_the_queue_is_full() -> None:
    """JOB_ID_IN_USE is the more useful refusal of the two."""
    it = dispatcher(max_queue=1)
    submitted(it)
    with pytest.raises(JobError) as refused:
        submitted(it)
    assert refused.value.code is ErrorCode.JOB_ID_IN_USE


def test_a_draining_worker_takes_nothing_but_finishes_what_it_has() -> None:
    """New jobs get a 503; waiting jobs are still started, and cancels still take effect."""
    it = dispatcher()
    waiting, other = submitted(it, "job-1"), submitted(it, "job-2")
    it.draining = True
    with pytest.raises(JobError) as refused:
        submitted(it, "job-3")
    assert (refused.value.code, refused.value.http_status) == (ErrorCode.DRAINING, 503)
    assert refused.value.retry_after_sec is not None
    assert it.accepted(waiting.run, PROMPT, at(1)) == [Begin(waiting)]
    assert it.cancel("job-2", stop_request(), at(2)) == (
        Target(TargetState.LIVE, other),
        [Ended(other), Drop(other)],
    )


def test_a_refused_submit_leaves_a_live_job_of_that_id_alone() -> None:
    """A 409 changes nothing for the live job."""
    it = dispatcher()
    job = running(it)
    before = snapshot_of(job)
    with pytest.raises(JobError):
        submitted(it)
    assert snapshot_of(job) == before


# Starting them.


def test_a_counted_prompt_that_fits_is_handed_over_and_runs_once_the_engine_says_so() -> None:
    """It gets what it asked for, and `started` is its first event; in between it counts as queued."""
    it = dispatcher()
    job = submitted(it, max_tokens=20)
    assert it.accepted(job.run, PROMPT, at(1)) == [Begin(job)]
    assert (job.state, job.phase, job.max_tokens) == (State.WAITING, Phase.QUEUED, 20)
    assert it.tracker.records()[0]["state"] == "queued"
    assert (len(it.queue), it.queue.running, job.events) == (1, 0, [])
    assert it.started(job.run, at(2)) is job
    assert (job.state, job.phase, job.started_at) == (State.RUNNING, Phase.PREFILL, 2)
    assert [event.name for event in job.events] == ["started"]
    assert (len(it.queue), it.queue.running) == (0, 1)


def test_a_job_that_waits_in_the_engine_is_stopped_by_the_engines_word() -> None:
    """It may have got a slot in the meantime, so only the engine knows; it never started for its client."""
    it = dispatcher()
    job = submitted(it)
    it.accepted(job.run, PROMPT, at(1))
    assert it.cancel("job-1", stop_request(), at(2)) == (Target(TargetState.LIVE, job), [SendStop(job)])
    assert it.started(job.run, at(2)) is None
    assert it.stopped(job.run, freed_at(3), at(3)) == [Ended(job)]
    assert [event.name for event in job.events] == ["error"]
    assert job.receipt is not None
    assert job.receipt.phase is Phase.QUEUED


def test_without_max_tokens_a_job_gets_what_fits_up_to_the_ceiling() -> None:
    """50 cells are left beside 10 prompt tokens, the ceiling is 40; beside 30 prompt tokens only 30 are left."""
    it = dispatcher()
    small, large = submitted(it, "job-1"), submitted(it, "job-2")
    it.accepted(small.run, PROMPT, at(1))
    it.accepted(large.run, (1,) * 30, at(1))
    assert (small.max_tokens, large.max_tokens) == (40, 30)


def test_a_job_that_is_not_counted_yet_holds_up_no_other() -> None:
    """Its chat template may take seconds. Prompts are otherwise counted in order of arrival."""
    it = dispatcher()
    first, second = submitted(it, "job-1"), submitted(it, "job-2")
    assert it.accepted(second.run, PROMPT, at(1)) == [Begin(second)]
    assert it.accepted(first.run, PROMPT, at(2)) == [Begin(first)]


def test_a_prompt_that_never_fits_is_refused_and_makes_room_for_the_next() -> None:
    """The job ends with an error that names the field, without `started`; the next job runs."""
    it = dispatcher()
    too_long, next_one = submitted(it, "job-1"), submitted(it, "job-2")
    assert it.accepted(too_long.run, (1,) * 60, at(2)) == [Ended(too_long), Drop(too_long)]
    assert it.accepted(next_one.run, PROMPT, at(1)) == [Begin(next_one)]
    assert [event.name for event in too_long.events] == ["error"]
    assert too_long.terminal is not None
    data = too_long.terminal.data()
    assert (data["code"], data["param"], data["retriable"]) == ("INVALID_REQUEST", "prompt", False)


def test_output_that_never_fits_names_max_tokens() -> None:
    """The prompt alone would fit."""
    it = dispatcher()
    job = submitted(it, max_tokens=40)
    assert it.accepted(job.run, (1,) * 30, at(1)) == [Ended(job), Drop(job)]
    assert job.terminal is not None
    assert job.terminal.data()["param"] == "max_tokens"


def test_what_the_engine_refuses_names_the_field_it_named() -> None:
    """Only the engine can find, for example, that a stop string has too many tokens."""
    it = dispatcher()
    job = submitted(it)
    refused = JobError(ErrorCode.INVALID_REQUEST, "a stop string has 40 tokens", param="stop")
    assert it.failed(job.run, refused, freed_at(1), at(1)) == [Ended(job)]
    assert job.terminal is not None
    assert job.terminal.data()["param"] == "stop"


def test_a_prompt_counted_after_its_job_was_cancelled_has_no_effect() -> None:
    """The engine was preparing it when the cancel came; the late answer has no effect."""
    it = dispatcher()
    job = submitted(it)
    it.cancel("job-1", stop_request(), at(2))
    before = snapshot_of(job)
    assert it.accepted(job.run, PROMPT, at(3)) == []
    assert snapshot_of(job) == before


# What the engine reports.


def test_tokens_go_to_their_job_and_its_readers_have_something_new() -> None:
    """The job is returned, so that its readers are woken."""
    it = dispatcher()
    job, other = running(it, "job-1"), running(it, "job-2")
    it.progress(job.run, 10)
    assert it.token(job.run, 5, "Hi", at(2)) is job
    assert job.prompt_processed == 10
    assert [event.name for event in job.events] == ["started", "token"]
    assert [event.name for event in other.events] == ["started"]


def test_tokens_after_a_stop_wake_no_reader() -> None:
    """The engine sent them before it received the stop."""
    it = dispatcher()
    job = running(it)
    it.cancel("job-1", stop_request(), at(2))
    assert it.token(job.run, 5, "Hi", at(3)) is None
    assert [event.name for event in job.events] == ["started"]


def test_a_natural_end_frees_its_place_for_the_next() -> None:
    """The effects are the end, then the start of the next job."""
    it = dispatcher()
    first = running(it, "job-1")
    running(it, "job-2")
    waiting = submitted(it, "job-3")
    assert it.accepted(waiting.run, PROMPT, at(2)) == []
    assert it.finished(first.run, "stop", freed_at(3), at(3)) == [Ended(first), Begin(waiting)]
    assert it.tracker.live("job-1") is None
    assert (it.queue.running, len(it.queue)) == (1, 1)


def test_a_failure_of_the_device_ends_the_job_and_frees_its_place() -> None:
    """Other jobs continue."""
    it = dispatcher()
    job, other = running(it, "job-1"), running(it, "job-2")
    error = JobError(ErrorCode.CUDA_ERROR, "GPU 0 failed")
    assert it.failed(job.run, error, freed_at(2), at(2)) == [Ended(job)]
    assert error_code(job) == "CUDA_ERROR"
    assert other.live
    assert it.queue.running == 1


def test_late_messages_for_ended_runs_have_no_effect() -> None:
    """No kind of late message has an effect or changes a job, even if the id is live again."""
    it = dispatcher()
    old = running(it)
    it.finished(old.run, "stop", freed_at(2), at(2))
    new = running(it)
    before = (snapshot_of(old), snapshot_of(new))
    run = old.run
    assert it.token(run, 5, "late", at(3)) is None
    it.progress(run, 99)
    assert it.report_progress(run, at(3)) is None
    assert it.accepted(run, PROMPT, at(3)) == []
    assert it.finished(run, "stop", freed_at(3), at(3)) == []
    assert it.failed(run, JobError(ErrorCode.INTERNAL, "late"), freed_at(3), at(3)) == []
    assert it.stopped(run, freed_at(3), at(3)) == []
    assert it.give_up(old, at(3)) == []
    assert (snapshot_of(old), snapshot_of(new)) == before


def test_a_confirmation_without_a_stop_has_no_effect() -> None:
    """An unrequested confirmation ends no job."""
    it = dispatcher()
    job = running(it)
    assert it.stopped(job.run, freed_at(2), at(2)) == []
    assert job.state is State.RUNNING


# Stopping.


def test_a_running_job_ends_with_the_engines_confirmation_of_its_stop() -> None:
    """Its place is free, and the next job starts, only with the engine's confirmation (G4)."""
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


def test_a_counted_job_that_is_cancelled_is_forgotten_by_the_engine() -> None:
    """It ends here, without asking; the engine keeps its prompt no longer."""
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


def test_a_cancel_says_what_was_known_of_the_id() -> None:
    """The state is unknown, live, stopping or finished; a cancel is never an error."""
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
    assert it.queue.in_engine == (first, large), "it took the free place"
    late = submitted(it, "job-5")
    effects = it.stop_all(stop_request(StopReason.SHUTDOWN), at(3))
    assert sorted(effect.job.job_id for effect in effects if isinstance(effect, SendStop)) == [
        "job-1",
        "job-3",
    ]
    assert sorted(effect.job.job_id for effect in effects if isinstance(effect, Ended)) == ["job-4", "job-5"]
    assert not any(isinstance(effect, Begin) for effect in effects)
    assert [event.name for event in late.events] == ["error"]
    assert first.stop == stop_request(StopReason.SHUTDOWN)


def test_a_head_that_held_up_a_smaller_one_does_not_start_it_while_all_are_stopped() -> None:
    """When the large head ends, the small job would fit, but ends unstarted as well."""
    it = dispatcher()
    running(it, "job-1", max_tokens=40)
    large, small = submitted(it, "job-2", prompt="large"), submitted(it, "job-3", max_tokens=5)
    it.accepted(large.run, (1,) * 20, at(1))
    it.accepted(small.run, PROMPT, at(1))
    assert it.queue.running == 1, "60 cells do not fit beside 50"
    effects = it.stop_all(stop_request(StopReason.SHUTDOWN), at(3))
    assert not any(isinstance(effect, Begin) for effect in effects)
    assert [event.name for event in small.events] == ["error"]


# Deadlines.


def test_jobs_whose_deadline_has_passed_are_stopped_whatever_they_do() -> None:
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


def test_a_deadline_is_not_looked_at_twice() -> None:
    """A job that is being stopped does not time out again, and its deadline is not the next one."""
    it = dispatcher()
    running(it, "job-1", timeout_ms=2000)
    it.expire(at(2))
    assert it.next_deadline() is None
    assert it.expire(at(2.5)) == ([], [])


def test_a_deadline_that_passes_during_a_cancel_changes_nothing() -> None:
    """The first reason wins."""
    it = dispatcher()
    job = running(it, timeout_ms=2000)
    it.cancel("job-1", stop_request(seconds=1.5), at(1.5))
    assert it.expire(at(5)) == ([], [])
    it.stopped(job.run, freed_at(5.1), at(5.1))
    assert error_code(job) == "CANCELLED"


def test_a_job_that_waits_and_is_late_is_not_handed_over_in_the_place_of_another_late_one() -> None:
    """Whatever ends in the same moment."""
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


def test_old_records_are_forgotten_when_time_passes() -> None:
    """`expire` is the core's only clock."""
    it = dispatcher()
    job = running(it)
    it.finished(job.run, "stop", freed_at(2), at(2))
    it.expire(at(302))
    assert it.tracker.ended("job-1")
    it.expire(at(303))
    assert not it.tracker.ended("job-1")


# Engines that come and go.


def test_an_engine_that_is_ready_gets_everything_that_waited_for_it() -> None:
    """In order of arrival; the jobs' phase is now `queued`, not `loading`."""
    it = dispatcher(ready=False)
    jobs = [submitted(it, f"job-{n}") for n in range(3)]
    assert it.engine_ready(ENGINE) == [Submit(job) for job in jobs]
    assert {job.phase for job in jobs} == {Phase.QUEUED}


def test_when_the_engine_dies_what_it_ran_continues_with_the_next() -> None:
    """Cancelled ones are CANCELLED; the rest waits in the order it came (G7)."""
    it = dispatcher()
    cancelled, ran = running(it, "job-1"), running(it, "job-2")
    waiting = submitted(it, "job-3")
    it.accepted(waiting.run, PROMPT, at(1))
    it.token(ran.run, 5, "Hi", at(2))
    it.cancel("job-1", stop_request(), at(2))
    assert it.engine_lost("it is dead", at(3)) == [Ended(cancelled)]
    assert error_code(cancelled) == "CANCELLED"
    assert [(job.state, job.phase) for job in (ran, waiting)] == [(State.QUEUED, Phase.LOADING)] * 2
    assert (it.queue.running, list(it.queue)) == (0, [ran, waiting])
    assert it.engine_ready(ENGINE) == [Submit(ran), Begin(ran), Submit(waiting), Begin(waiting)]
    it.started(ran.run, at(4))
    assert [event.name for event in ran.events] == ["started", "token"]
    assert (ran.tokens, ran.requeues, waiting.requeues) == ([5], 1, 0)
    it.token(ran.run, 6, " you", at(5))
    assert [event.data()["i"] for event in ran.events[1:]] == [0, 1]


def test_what_ran_is_handed_to_the_next_engine_before_all_that_waited() -> None:
    """Whoever it belongs to, and however long its owner's other prompts take to render."""
    it = dispatcher(max_queue=100)
    ran = [submit(it, execute(f"a-{n}"), "cor", at(0), "anna")[0] for n in range(2)]
    for job in ran:
        it.accepted(job.run, PROMPT, at(1))
        it.started(job.run, at(1))
    for n in range(9):
        submit(it, execute(f"b-{n}"), "cor", at(2), "berta")
    it.engine_lost("it is dead", at(3))
    effects = it.engine_ready(ENGINE)
    assert [effect.job for effect in effects if isinstance(effect, Begin)] == ran
    assert all(job.state is State.WAITING for job in ran)


def test_a_prompt_that_was_not_counted_yet_is_counted_by_the_next_engine() -> None:
    """The dead engine will not answer."""
    it = dispatcher()
    waiting = submitted(it)
    it.engine_lost("it is dead", at(3))
    assert it.engine_ready(ENGINE) == [Submit(waiting)]
    assert it.accepted(waiting.run, PROMPT, at(5)) == [Begin(waiting)]


def dies(it: Dispatcher) -> list[Effect]:
    """An engine dies and the next is ready."""
    return it.engine_lost("it is dead", at(3)) + it.engine_ready(ENGINE)


def handed_over(it: Dispatcher, effects: list[Effect]) -> list[Job]:
    """The engine accepts all that is submitted and gives all that begins a slot: whom it has then."""
    begun: list[Job] = []
    while effects:
        effect = effects.pop(0)
        if isinstance(effect, Submit) and effect.job.prompt_tokens is None:
            effects += it.accepted(effect.job.run, PROMPT, at(4))
        elif isinstance(effect, Begin):
            it.started(effect.job.run, at(4))
            begun.append(effect.job)
    return begun


def test_a_job_that_engines_die_with_is_tried_alone_and_fails_with_the_third() -> None:
    """The other jobs survive: a token clears a job, and no job runs beside a suspect (poison)."""
    it = dispatcher()
    poison, innocent = running(it, "job-1"), running(it, "job-2")
    late = submitted(it, "job-3")
    it.accepted(late.run, PROMPT, at(1))
    assert handed_over(it, dies(it)) == [poison, innocent]
    assert handed_over(it, dies(it)) == [poison], "both are suspected now, so one is tried alone"
    effects = dies(it)
    assert effects[0] == Ended(poison)
    assert handed_over(it, effects) == [innocent]
    assert error_code(poison) == "ENGINE_LOST"
    it.token(innocent.run, 5, "Hi", at(5))
    assert handed_over(it, it.start_next()) == [late], "cleared by its token, it is not alone any more"
    assert handed_over(it, dies(it)) == [innocent, late]


def test_suspects_that_a_token_cleared_delay_no_other_job() -> None:
    """Two deaths in a row make suspects of all running jobs; they do not run one by one to their ends."""
    it = dispatcher()
    first, second = running(it, "job-1"), running(it, "job-2")
    late = submitted(it, "job-3")
    it.accepted(late.run, PROMPT, at(1))
    handed_over(it, dies(it))
    assert handed_over(it, dies(it)) == [first]
    it.token(first.run, 5, "Hi", at(5))
    assert handed_over(it, it.start_next()) == [second], (
        "the first is cleared: the second need not wait for its end"
    )
    assert it.start_next() == [], "the second is not cleared yet, so no other job is handed over"
    it.token(second.run, 5, "Hi", at(7))
    assert handed_over(it, it.finished(first.run, "stop", freed_at(8), at(8)) + it.start_next()) == [late]


def test_prompts_that_the_engine_has_to_count_at_a_time_are_bounded() -> None:
    """Cancelled waiting jobs cost the engine next to nothing (G1), and its backlog does not grow (G10)."""
    it = dispatcher()
    handed: list[Job] = []
    for number in range(500):
        job, effects = submit(it, execute(f"job-{number}"), "cor", at(0))
        effects += it.stop(job, stop_request(), at(0))[1]
        handed += [effect.job for effect in effects if isinstance(effect, Submit)]
    assert len(handed) == MAX_PREPARING // 2, "the other half is for other owners"
    waiting, _ = submit(it, execute("waiting"), "cor", at(0))
    assert it.accepted(handed[0].run, PROMPT, at(1)) == [Submit(waiting)]


def test_an_owners_slow_prompts_hold_up_no_other_owners() -> None:
    """Beside a hundred prompts that take long to render, another tenant's prompt is prepared at once and runs
    first."""
    it = dispatcher(max_queue=200)
    slow = [submit(it, execute(f"slow-{number}"), "cor", at(0), "anna")[0] for number in range(100)]
    job, effects = submit(it, execute("quick"), "cor", at(0), "berta")
    assert effects == [Submit(job)]
    assert it.accepted(job.run, PROMPT, at(1)) == [Begin(job)]
    assert it.accepted(slow[0].run, PROMPT, at(2)) == [Submit(slow[MAX_PREPARING // 2]), Begin(slow[0])]


def test_a_prompt_that_engines_die_of_fails_with_the_third() -> None:
    """Only the first prompt in line is suspected: the one that the engine was preparing."""
    it = dispatcher()
    poison, behind = submitted(it, "job-1"), submitted(it, "job-2")
    assert dies(it) == [Submit(poison), Submit(behind)]
    assert dies(it) == [Submit(poison)]
    assert dies(it) == [Ended(poison), Submit(behind)]
    assert (poison.deaths, behind.deaths) == (3, 0)


def test_a_death_while_loading_is_nobodys_fault() -> None:
    """No engine held these jobs, so none is suspected."""
    it = dispatcher(ready=False)
    job = submitted(it)
    for _ in range(5):
        it.engine_lost("it cannot be loaded", at(3))
    assert (job.deaths, job.state) == (0, State.QUEUED)


def test_a_suspect_that_is_cancelled_lets_the_others_continue() -> None:
    """Whether it waits or runs when the cancel comes."""
    it = dispatcher()
    running(it, "job-1")
    other = running(it, "job-2")
    handed_over(it, dies(it))
    (suspect,) = handed_over(it, dies(it))
    other.deaths = 0
    effects = it.cancel("job-1", stop_request(), at(5))[1]
    assert effects == [SendStop(suspect)]
    effects = it.stopped(suspect.run, freed_at(6), at(6))
    assert effects[0] == Ended(suspect)
    assert handed_over(it, effects) == [other]


def test_a_job_that_is_preempted_waits_in_the_engine_and_continues_where_it_was() -> None:
    """Its readers notice nothing but the pause, and its record says that it is queued."""
    it = dispatcher()
    older, younger = running(it, "job-1"), running(it, "job-2")
    behind = submitted(it, "job-3")
    it.accepted(behind.run, PROMPT, at(1))
    it.token(younger.run, 5, "Hi", at(2))
    it.preempted(younger.run)
    assert (younger.state, younger.phase, list(it.queue)) == (State.WAITING, Phase.QUEUED, [behind])
    assert record_of(younger)["state"] == "queued"
    assert (it.queue.running, len(it.queue)) == (1, 2)
    assert it.finished(older.run, "stop", freed_at(3), at(3)) == [Ended(older), Begin(behind)]
    assert it.started(younger.run, at(4)) is younger
    assert (younger.tokens, younger.requeues, younger.state) == ([5], 1, State.RUNNING)
    assert [event.name for event in younger.events] == ["started", "token"]


def test_a_job_that_is_preempted_while_it_is_being_stopped_still_waits_for_its_confirmation() -> None:
    """The confirmation is on its way; the job is not started again."""
    it = dispatcher()
    job = running(it)
    it.cancel("job-1", stop_request(), at(2))
    it.preempted(job.run)
    assert (job.state, it.start_next()) == (State.STOPPING, [])
    assert it.stopped(job.run, freed_at(3), at(3)) == [Ended(job)]


# Cancels that come first, and groups.


def test_a_cancel_that_overtakes_its_job_wins_once() -> None:
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


def test_an_id_whose_record_is_too_old_was_never_seen() -> None:
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


def test_cancels_of_one_owner_push_out_only_its_own() -> None:
    """Anna's early cancel still wins after 10,200 cancels of Berta's for ids that nobody uses (G8, G9)."""
    it = dispatcher()
    it.cancel("job-1", stop_request(), at(1), "anna")
    for n in range(10_200):
        it.cancel(f"made-up-{n}", stop_request(), at(1.5), "berta")
    assert len(it.remembered) == 10_000
    job, _ = submit(it, execute(), "cor-1", at(2), "anna")
    assert [event.name for event in job.events] == ["error"]


def test_a_full_queue_does_not_say_how_many_wait() -> None:
    """The number would show a tenant how busy other tenants are; incarnations do not show it either."""
    it = dispatcher(max_queue=2)
    seen = [submit(it, execute(f"job-{n}"), "cor-1", at(1), "berta")[0].incarnation for n in range(2)]
    with pytest.raises(JobError) as caught:
        submit(it, execute(), "cor-1", at(1), "anna")
    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert not any(character.isdigit() for character in caught.value.message)
    assert len(set(seen)) == 2
    assert all(re.fullmatch("[0-9a-f]{20}", one) for one in seen)


def submitted_at(it: Dispatcher, seconds: float) -> Job:
    """`job-1`, accepted at that second."""
    return submit(it, execute(), "cor-1", at(seconds))[0]


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


def test_owners_never_meet() -> None:
    """The same id of two owners is two jobs; neither owner can stop, see or learn of the other's (G9)."""
    it = dispatcher()
    mine = submit(it, execute("job-1", group="g"), "cor-1", at(0), "anna")[0]
    theirs = submit(it, execute("job-1", group="g"), "cor-2", at(0), "berta")[0]
    assert it.stop_group("g", stop_request(), at(1), "carl") == ([], [])
    assert it.cancel("job-1", stop_request(), at(1), "carl") == (Target(TargetState.UNKNOWN), [])
    assert it.cancel("job-1", stop_request(), at(1), "anna") == (
        Target(TargetState.LIVE, mine),
        [Ended(mine), Drop(mine)],
    )
    assert theirs.live
    assert it.tracker.record("job-1", "carl") is None
    assert [record["state"] for record in it.tracker.records("anna")] == ["cancelled"]
    assert [record["state"] for record in it.tracker.records("berta")] == ["queued"]


def test_nothing_is_started_while_there_is_no_engine() -> None:
    """Not even a job whose prompt was counted and that would have a place."""
    it = dispatcher()
    running(it, "job-1")
    running(it, "job-2")
    waiting = submitted(it, "job-3")
    it.accepted(waiting.run, PROMPT, at(1))
    effects = it.engine_lost("it is dead", at(3))
    assert not any(isinstance(effect, Begin) for effect in effects)
    assert it.accepted(waiting.run, PROMPT, at(4)) == []
    assert waiting.state is State.QUEUED


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
    assert it.engine_lost("killed at last", at(9)) == []
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
