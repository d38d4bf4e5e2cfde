"""Preemption in the whole worker on a model of each kind of memory (G4, G7, G15)."""

import pytest

from tests.helpers import at_rest
from tests.models.matrix import Case
from tests.models.test_worker import KINDS, assert_all_there, neighbour
from tests.tiny import TinyModels
from worker_orcd.testing.harness import running_worker

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_jobs_are_requeued_when_cells_run_out_and_get_all_their_tokens(
    case: Case, tiny_models: TinyModels
) -> None:
    """Four jobs grow into room for two; those that are preempted continue where they were."""
    path = tiny_models.path(case.name, **case.metadata)
    with running_worker("llama", wait=False, model=path, parallel=4, context_length=512, threads=1) as worker:
        worker.ready(within_sec=120)
        streams = [neighbour(worker, seed) for seed in (40, 41, 42, 43)]
        for stream in streams:
            assert_all_there(stream)
        assert sum(worker.record(stream.job_id)["requeues"] for stream in streams) > 0
        at_rest(worker)
        assert worker.health()["engine_restarts"] == 0
        assert "worker_audit_faults_total 0.0" in worker.client.get("/metrics").text
