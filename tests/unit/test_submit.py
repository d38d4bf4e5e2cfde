"""Requests that become jobs: how long their prompts are waited for."""

import asyncio
from typing import cast

import pytest

from tests.fakes import queued_job
from worker_orcd.api import submit
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream


class SlowWorker:
    """A worker that counts no prompt, so that each wait lasts as long as it may; also its clock, and its jobs'
    stream."""

    engine = True

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.job = queued_job()

    def monotonic(self) -> float:
        """The time."""
        return self.now

    async def changed(self, timeout_sec: float) -> bool:
        """Wait until the timeout."""
        self.waits.append(timeout_sec)
        self.now += timeout_sec
        return False


@pytest.mark.parametrize("choices", [1, 2, 8])
def test_the_prompts_of_all_choices_are_waited_for_together(
    choices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, not once each: otherwise eight choices begin after eight seconds."""
    worker = SlowWorker()
    monkeypatch.setattr(submit, "time", worker)
    streams = [cast(JobStream, worker)] * choices
    asyncio.run(submit._measured(cast(WorkerInterface, worker), streams))
    assert worker.waits == [submit.MEASURE_PATIENCE_SEC]
    assert worker.now == 100.0 + submit.MEASURE_PATIENCE_SEC
