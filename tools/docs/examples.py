"""A worker whose engine is never started, and jobs for examples."""

import io

from worker_orcd import narration
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import Capacity, ReadyEngine
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.request import Ceilings, ExecuteRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.worker import Worker

_REQUEST = ExecuteRequest.of(
    job_id="test-123", prompt="Write a long story...", max_tokens=1000, temperature=0.7, seed=42
)
_ACCEPTED_UNIX = 1_767_225_600.0


def cancelled_job() -> Job:
    """A job that a client cancels after its second token."""
    dispatcher, job = _running_job()
    asked = StopRequest(StopReason.CLIENT, 0.2, "cancel-7f3a")
    dispatcher.stop(job, asked, _at(0.2))
    dispatcher.stopped(job.run, Release(0.2035, 0.2036, 37, 0, 36), _at(0.2042))
    return job


def finished_job() -> Job:
    """A job that the model ends after its second token."""
    dispatcher, job = _running_job()
    dispatcher.finished(job.run, "stop", Release(0.2, 0.2, 37, 0), _at(0.2))
    return job


def _running_job() -> tuple[Dispatcher, Job]:
    dispatcher = Dispatcher(Ceilings(), max_queue=512, epoch="5f3a9c21d4")
    dispatcher.engine_ready(ReadyEngine(Capacity(16384, 8192, 16), "Smollm2 135M 8k Lc100K Mix1 Ep2"))
    (job,) = dispatcher.submit([_REQUEST], "execute-51c9", _at(0.0)).jobs
    dispatcher.accepted(job.run, tuple(range(36)), _at(0.001))
    dispatcher.started(job.run, _at(0.001))
    dispatcher.progress(job.run, 36)
    dispatcher.token(job.run, 1000, "Once", _at(0.15))
    dispatcher.token(job.run, 1001, " upon", _at(0.16))
    return dispatcher, job


def _at(sec: float) -> Timestamp:
    return Timestamp(sec, _ACCEPTED_UNIX + sec)


def silent_narrator() -> narration.Narrator:
    """A narrator without listeners."""
    return narration.Narrator.configure("docs", log_format="json", stream=io.StringIO())


def idle_worker() -> Worker:
    """A worker whose engine is never started."""

    async def launch(_: EngineListener) -> Engine:
        raise NotImplementedError

    return Worker(Policy(), launch, silent_narrator(), worker_id="docs", model_path="model.gguf")
