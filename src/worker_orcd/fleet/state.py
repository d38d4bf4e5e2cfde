"""What a worker reports of itself to routers."""

from worker_orcd.fleet.wire import WorkerState
from worker_orcd.supervisor.supervisor import EngineState
from worker_orcd.worker.health import health_of
from worker_orcd.worker.worker import Worker


def state_of(worker: Worker) -> WorkerState:
    """What routers have to know of a worker now."""
    return WorkerState(
        health=health_of(worker),
        engine=worker.engine,
        tool_formats=worker.tool_formats,
        model_names=worker.model_names,
        recommended_sampling=worker.recommended_sampling,
        permanently_failed=worker.supervisor.state is EngineState.PERMANENTLY_FAILED,
    )
