"""Dispatchers and jobs for tests of the core."""

from tests.fakes import at, execute, submit
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Begin
from worker_orcd.jobs.events import Error
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import Capacity, ReadyEngine
from worker_orcd.jobs.request import Ceilings

ENGINE = ReadyEngine(Capacity(cells=100, cells_per_job=60, sequences=2), "a-model")

PROMPT = (1,) * 10


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
