"""An engine that cannot be brought back."""

import shutil
import signal
from pathlib import Path

from tests.helpers import fresh_id
from worker_orcd.settings import bundled_model
from worker_orcd.testing.harness import running_worker, wait_until
from worker_orcd.testing.trials import STORY


def test_a_worker_whose_engine_cannot_be_brought_back_says_so_and_ends_its_jobs(tmp_path: Path) -> None:
    """On the real model, whose file is deleted: a few starts, not a loop; then running and new jobs get
    `ENGINE_LOST`, and health and liveness are 503 with a clear reason."""
    model = tmp_path / "model.gguf"
    shutil.copy(bundled_model(), model)
    with running_worker("llama", model=model) as worker:
        stream = worker.execute(fresh_id(), STORY, ignore_eos=True).tokens_seen(2)
        model.unlink()
        worker.signal_engine(signal.SIGKILL)
        assert worker.client.get("/livez").status_code == 200
        wait_until(
            lambda: worker.client.get("/livez").status_code == 503, within_sec=60, what="the end of hope"
        )
        stream.finished().assert_whole()
        assert stream.events[-1].data["code"] == "ENGINE_LOST"
        assert "model.gguf" not in stream.events[-1].data["message"], "paths are for operators"
        health = worker.client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "unhealthy"
        assert "model.gguf" in health.json()["reason"]
        assert health.json()["engine_pid"] is None
        late = worker.client.post("/execute", json={"job_id": fresh_id(), "prompt": "x"})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "ENGINE_LOST")
        assert worker.cancel(stream.job_id).status_code == 202
        starts = worker.health()["engine_restarts"]
        assert starts <= 6
