"""The core's work for a step, a request or a cancel does not grow with the number of waiting jobs."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests.dispatching import PROMPT, dispatcher, running, submitted
from tests.fakes import at, freed_at, queued_job, stop_request
from worker_orcd.jobs.deadlines import Deadlines
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.queue import JobQueue
from worker_orcd.jobs.tracker import JobTracker

FEW, MANY = 30, 3000


def crowded(waiting: int) -> Dispatcher:
    """Two jobs run, this many wait, and eight prompts are being counted."""
    it = dispatcher(max_queue=10_000)
    for n in range(2):
        running(it, f"running-{n}")
    for n in range(waiting):
        submitted(it, f"waiting-{n}", group=f"g-{n % 20}" if n < 20 else None)
    return it


def instructions(act: Callable[[], object]) -> int:
    """Bytecode instructions that the call takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def a_step(it: Dispatcher) -> None:
    """Tokens arrive, a job ends, and the next one starts."""
    it.token(1, 5, "a", at(3))
    it.start_next()
    it.finished(1, "stop", freed_at(3), at(3))


def a_preemption(it: Dispatcher) -> None:
    """The younger job is requeued in front of all others."""
    it.preempted(2)
    it.start_next()


ACTS: dict[str, Callable[[Dispatcher], object]] = {
    "a step": a_step,
    "a preemption": a_preemption,
    "a request": lambda it: submitted(it, "new"),
    "a prompt is counted": lambda it: it.accepted(3, PROMPT, at(3)),
    "a cancel of one that waits": lambda it: it.cancel("waiting-9", stop_request(seconds=3), at(3)),
    "a cancel of a group": lambda it: it.stop_group("g-7", stop_request(seconds=3), at(3)),
    "the next deadline": lambda it: it.next_deadline(),
    "nobody is late": lambda it: it.expire(at(3)),
}


@pytest.mark.parametrize("what", ACTS)
def test_no_act_of_the_core_looks_at_every_job(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--max-queue` allows 100,000: waiting jobs are never copied as a whole, and more of them take no more
    instructions."""
    few, many = crowded(FEW), crowded(MANY)

    def whole(_: object) -> None:
        raise AssertionError("all jobs are looked at")

    monkeypatch.setattr(JobTracker, "__iter__", whole)
    monkeypatch.setattr(JobQueue, "__iter__", whole)
    took_few, took_many = (instructions(lambda it=it: ACTS[what](it)) for it in (few, many))  # type: ignore[misc]
    assert took_many <= took_few + 50


def test_deadlines_of_ended_jobs_do_not_pile_up() -> None:
    """Thousands of jobs are accepted and cancelled while one waits for its long deadline."""
    deadlines = Deadlines()
    deadlines.add(queued_job("waits", run=1, timeout_sec=10), 1)
    for run in range(2, 5000):
        job = queued_job(f"job-{run}", run=run, timeout_sec=100)
        deadlines.add(job, 2)
        job.request_stop(stop_request())
    assert len(deadlines) < 200
    assert deadlines.next() == 10
    assert [job.job_id for job in deadlines.passed(10)] == ["waits"]
    assert deadlines.next() is None
