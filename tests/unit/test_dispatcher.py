"""The dispatcher: submitting jobs, starting them, and the engine's reports."""

import re

import pytest

from tests.dispatching import PROMPT, dispatcher, error_code, running, submitted
from tests.fakes import at, execute, freed_at, snapshot_of, stop_request, submit
from worker_orcd.jobs.effects import Begin, Drop, Ended, SendStop, Submit
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.preparing import MAX_PREPARING
from worker_orcd.jobs.stop_target import Target, TargetState

pytestmark = pytest.mark.usefixtures("no_job_ahead")


def test_a_job_is_prepared_when_it_is_accepted() -> None:
    """Its prompt is tokenized while it waits."""
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


def test_a_request_of_more_jobs_than_may_wait_is_accepted_while_none_waits() -> None:
    """Otherwise it would be refused for ever."""
    it = dispatcher(ready=False, max_queue=2)
    requests = [execute(f"choice-{n}") for n in range(4)]
    assert len(it.submit(requests, "cor", at(0)).jobs) == 4
    with pytest.raises(JobError, match="the queue is full"):
        submitted(it, "another")


def test_a_live_id_is_in_use_even_when_the_queue_is_full() -> None:
    """JOB_ID_IN_USE is the more useful of the two refusals."""
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


def test_a_job_whose_prompt_fits_is_handed_over_and_runs_when_the_engine_starts_it() -> None:
    """It gets the requested `max_tokens`, and `started` is its first event; until then it counts as queued."""
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


def test_the_stop_of_a_job_that_waits_in_the_engine_needs_the_engines_confirmation() -> None:
    """Only the engine knows whether it has got a slot meanwhile; its client gets no `started`."""
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


def test_a_job_whose_prompt_is_not_counted_yet_delays_no_other() -> None:
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


def test_an_error_has_the_field_that_the_engine_refused() -> None:
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


def test_tokens_become_events_of_their_job() -> None:
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


def test_a_natural_end_frees_its_slot_for_the_next() -> None:
    """The effects are the end, then the start of the next job."""
    it = dispatcher()
    first = running(it, "job-1")
    running(it, "job-2")
    waiting = submitted(it, "job-3")
    assert it.accepted(waiting.run, PROMPT, at(2)) == []
    assert it.finished(first.run, "stop", freed_at(3), at(3)) == [Ended(first), Begin(waiting)]
    assert it.tracker.live("job-1") is None
    assert (it.queue.running, len(it.queue)) == (1, 1)


def test_a_failure_of_the_device_ends_the_job_and_frees_its_slot() -> None:
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


def test_the_prompts_that_the_engine_prepares_at_a_time_are_bounded() -> None:
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


def test_the_slow_prompts_of_an_owner_do_not_delay_those_of_another() -> None:
    """Beside a hundred prompts that take long to render, another tenant's prompt is prepared at once and runs
    first."""
    it = dispatcher(max_queue=200)
    slow = [submit(it, execute(f"slow-{number}"), "cor", at(0), "anna")[0] for number in range(100)]
    job, effects = submit(it, execute("quick"), "cor", at(0), "berta")
    assert effects == [Submit(job)]
    assert it.accepted(job.run, PROMPT, at(1)) == [Begin(job)]
    assert it.accepted(slow[0].run, PROMPT, at(2)) == [Submit(slow[MAX_PREPARING // 2]), Begin(slow[0])]


def test_a_full_queue_does_not_reveal_how_many_jobs_wait() -> None:
    """The number would show a tenant how busy the others are; incarnations do not show it either."""
    it = dispatcher(max_queue=2)
    seen = [submit(it, execute(f"job-{n}"), "cor-1", at(1), "berta")[0].incarnation for n in range(2)]
    with pytest.raises(JobError) as caught:
        submit(it, execute(), "cor-1", at(1), "anna")
    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert not any(character.isdigit() for character in caught.value.message)
    assert len(set(seen)) == 2
    assert all(re.fullmatch("[0-9a-f]{20}", one) for one in seen)


def test_owners_are_isolated() -> None:
    """The same id of two owners means two jobs; neither owner can stop or see the other's (G9)."""
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
