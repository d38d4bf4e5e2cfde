"""Urgent jobs run first and preempt others; no job starves."""

import pytest

from tests.dispatching import PROMPT
from tests.fakes import at, execute, freed_at, submit
from worker_orcd.jobs import queue
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Begin, Effect
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.priority import LEVEL_SEC, MAX_LEVELS
from worker_orcd.jobs.queue import Capacity, ReadyEngine
from worker_orcd.jobs.request import Ceilings


@pytest.fixture(autouse=True)
def no_job_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is handed only jobs that it has slots for: so the others show what the queue does."""
    monkeypatch.setattr(queue, "AHEAD", 0)


def narrow(sequences: int = 1) -> Dispatcher:
    """A dispatcher whose engine runs this many jobs together."""
    it = Dispatcher(Ceilings(), 1000)
    it.engine_ready(ReadyEngine(Capacity(10_000, 5_000, sequences), "a-model"))
    return it


def counted(it: Dispatcher, job_id: str, priority: int = 0, seconds: float = 1) -> tuple[Job, list[Effect]]:
    """A job whose prompt is counted, and the effects of that."""
    job, _ = submit(it, execute(job_id, priority=priority, max_tokens=9), "cor", at(seconds))
    effects = it.accepted(job.run, PROMPT, at(seconds))
    if job.state is State.WAITING and len(it.queue.in_engine) == 1:
        it.started(job.run, at(seconds))
    return job, effects


def runs(effects: list[Effect]) -> list[str]:
    """The jobs that are handed to the engine."""
    return [effect.job.job_id for effect in effects if isinstance(effect, Begin)]


def test_waiting_jobs_are_handed_over_by_priority_then_by_arrival() -> None:
    """Lower is more urgent, as in vLLM."""
    it = narrow()
    running, _ = counted(it, "running", -100)
    it.preempted(running.run)
    for name, priority in (("a", 0), ("b", 1), ("c", -1), ("d", 0), ("e", -1)):
        counted(it, name, priority)
    order = []
    while it.queue.in_engine:
        (running,) = it.queue.in_engine
        order.append(running.job_id)
        it.started(running.run, at(2))
        it.finished(running.run, "stop", freed_at(2), at(2))
    assert order == ["running", "c", "e", "a", "d", "b"]


def test_an_urgent_job_is_handed_to_a_full_engine_and_the_preempted_one_continues_before_later_ones() -> None:
    """The engine preempts the less urgent one, which waits there."""
    it = narrow()
    victim, _ = counted(it, "victim", 1)
    later, _ = counted(it, "later", 1, seconds=2)
    urgent, effects = counted(it, "urgent", 0, seconds=3)
    assert runs(effects) == ["urgent"]
    it.preempted(victim.run)
    it.started(urgent.run, at(4))
    assert (victim.state, victim.phase, victim.requeues) == (State.WAITING, Phase.QUEUED, 1)
    assert runs(it.start_next()) == []
    assert (list(it.queue), len(it.queue), it.queue.running) == ([later], 2, 1)
    assert runs(it.finished(urgent.run, "stop", freed_at(5), at(5))) == []
    it.started(victim.run, at(5))
    assert runs(it.finished(victim.run, "stop", freed_at(6), at(6))) == ["later"]
    assert [event.name for event in victim.events] == ["started", "end"], "its stream shows a pause"


@pytest.mark.parametrize("priority", [0, 1, 2])
def test_a_job_preempts_none_that_is_as_urgent(priority: int) -> None:
    """It waits for a place."""
    it = narrow()
    counted(it, "running", 0)
    assert runs(counted(it, "other", priority)[1]) == []


def test_no_more_urgent_jobs_are_handed_over_than_the_engine_has_places() -> None:
    """Two places, one of them with an urgent job: there is room for one more."""
    it = narrow(2)
    counted(it, "victim", 5)
    counted(it, "urgent-1", 0)
    assert runs(counted(it, "urgent-2", 0)[1]) == ["urgent-2"]
    assert runs(counted(it, "urgent-3", 0)[1]) == []


def test_waiting_makes_up_for_priority() -> None:
    """A level is worth ten seconds of waiting: after that the job is neither overtaken nor preempted."""
    it = narrow()
    old, _ = counted(it, "old", 1, seconds=1)
    assert runs(counted(it, "too-late", 0, seconds=1 + LEVEL_SEC + 0.1)[1]) == []
    assert runs(counted(it, "urgent", -1, seconds=1 + LEVEL_SEC + 0.2)[1]) == ["urgent"]
    assert old.order < it.tracker.live("too-late").order  # type: ignore[union-attr]


@pytest.mark.parametrize("priority", [0, 2**31 - 1])
def test_no_job_starves_behind_urgent_ones(priority: int) -> None:
    """Jobs of the highest urgency arrive each second, and each takes two seconds."""
    it = narrow()
    patient, _ = counted(it, "patient", priority, seconds=0)
    bound = LEVEL_SEC * MAX_LEVELS * (1 if priority == 0 else 2)
    second = 0
    while patient.live:
        second += 1
        counted(it, f"urgent-{second}", -(2**31), seconds=second)
        running = next((job for job in it.queue.in_engine if job.state is State.RUNNING), None)
        first = min(it.queue.in_engine, key=lambda job: job.order)
        if running is not None and first.may_preempt(running):
            it.preempted(running.run)
            running = None
        if running is None:
            it.started(first.run, at(second))
            running = first
        if second % 2:
            it.finished(running.run, "stop", freed_at(second), at(second))
    assert patient.requeues > 0
    assert bound < second < 2 * bound + 10
