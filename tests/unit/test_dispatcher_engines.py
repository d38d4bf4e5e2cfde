"""The dispatcher: engines that die and become ready, jobs that kill them, and preempted jobs."""

import pytest

from tests.dispatching import ENGINE, PROMPT, dispatcher, error_code, running, submitted
from tests.fakes import at, execute, freed_at, stop_request, submit
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Begin, Effect, Ended, SendStop, Submit
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.record import record_of

pytestmark = pytest.mark.usefixtures("no_job_ahead")


def test_an_engine_that_becomes_ready_gets_all_waiting_jobs() -> None:
    """In order of arrival. The jobs' phase changes from `loading` to `queued`."""
    it = dispatcher(ready=False)
    jobs = [submitted(it, f"job-{n}") for n in range(3)]
    assert it.engine_ready(ENGINE) == [Submit(job) for job in jobs]
    assert {job.phase for job in jobs} == {Phase.QUEUED}


def test_when_the_engine_dies_what_it_ran_continues_with_the_next() -> None:
    """A cancelled job ends as CANCELLED; the others wait in their order of arrival (G7)."""
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


def test_jobs_that_ran_are_handed_to_the_next_engine_before_jobs_that_waited() -> None:
    """Whatever their owners, and however many prompts of another owner are waiting."""
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
    """The dead engine will not report it."""
    it = dispatcher()
    waiting = submitted(it)
    it.engine_lost("it is dead", at(3))
    assert it.engine_ready(ENGINE) == [Submit(waiting)]
    assert it.accepted(waiting.run, PROMPT, at(5)) == [Begin(waiting)]


def dies(it: Dispatcher) -> list[Effect]:
    """An engine dies and the next is ready."""
    return it.engine_lost("it is dead", at(3)) + it.engine_ready(ENGINE)


def handed_over(it: Dispatcher, effects: list[Effect]) -> list[Job]:
    """Let the engine accept all submitted jobs and give each begun job a slot. Returns the begun jobs."""
    begun: list[Job] = []
    while effects:
        effect = effects.pop(0)
        if isinstance(effect, Submit) and effect.job.prompt_tokens is None:
            effects += it.accepted(effect.job.run, PROMPT, at(4))
        elif isinstance(effect, Begin):
            it.started(effect.job.run, at(4))
            begun.append(effect.job)
    return begun


def test_a_job_that_kills_engines_is_tried_alone_and_fails_with_the_third() -> None:
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


def test_a_prompt_that_kills_engines_fails_with_the_third() -> None:
    """Only the first prompt in line is suspected: the one that the engine was preparing."""
    it = dispatcher()
    poison, behind = submitted(it, "job-1"), submitted(it, "job-2")
    assert dies(it) == [Submit(poison), Submit(behind)]
    assert dies(it) == [Submit(poison)]
    assert dies(it) == [Ended(poison), Submit(behind)]
    assert (poison.deaths, behind.deaths) == (3, 0)


def test_a_death_while_loading_makes_no_job_suspected() -> None:
    """No engine held these jobs."""
    it = dispatcher(ready=False)
    job = submitted(it)
    for _ in range(5):
        it.engine_lost("it cannot be loaded", at(3))
    assert (job.deaths, job.state) == (0, State.QUEUED)


def test_a_suspect_that_is_cancelled_lets_the_others_continue() -> None:
    """The cancel stops it like any other job."""
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
    """Its readers see only the pause, and its record says that it is queued."""
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
    """It is not started again."""
    it = dispatcher()
    job = running(it)
    it.cancel("job-1", stop_request(), at(2))
    it.preempted(job.run)
    assert (job.state, it.start_next()) == (State.STOPPING, [])
    assert it.stopped(job.run, freed_at(3), at(3)) == [Ended(job)]


def test_nothing_is_started_while_there_is_no_engine() -> None:
    """Not even a job whose prompt is counted and that would get a slot."""
    it = dispatcher()
    running(it, "job-1")
    running(it, "job-2")
    waiting = submitted(it, "job-3")
    it.accepted(waiting.run, PROMPT, at(1))
    effects = it.engine_lost("it is dead", at(3))
    assert not any(isinstance(effect, Begin) for effect in effects)
    assert it.accepted(waiting.run, PROMPT, at(4)) == []
    assert waiting.state is State.QUEUED
