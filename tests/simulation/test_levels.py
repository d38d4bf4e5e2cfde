"""Dozens of levels of priority in virtual time, each of which may preempt all below it (contract, 2)."""

import asyncio
import io
import random

from tests.fakes import execute
from tests.simulation.clock import virtual_time
from tests.simulation.engine import SEQUENCES, VirtualEngine, Weather
from worker_orcd.engine.scheduler import max_waiting
from worker_orcd.jobs.events import End
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.priority import LEVEL_SEC, MAX_LEVELS
from worker_orcd.jobs.queue import AHEAD
from worker_orcd.jobs.request import Ceilings
from worker_orcd.narration import Narrator
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.worker import Worker

ROOMY = 16384
"""Cells that also hold what preempted runs have computed."""
BEGINNING = '{"token_ms": 0, "row_ms": 0, "job-'
SHARED = len(BEGINNING)
LEVELS = range(MAX_LEVELS, -MAX_LEVELS - 1, -1)
"""From the least urgent one to the most urgent one."""


class Levels:
    """A worker with one engine that never fails, its jobs, and how many of them waited in the engine."""

    def __init__(self, step_ms: float) -> None:
        self.step_ms = step_ms
        self.jobs: list[Job] = []
        self.most_waiting = 0
        narrator = Narrator.configure("worker", log_format="json", stream=io.StringIO())
        policy = Policy(ceilings=Ceilings(inference_timeout_sec=7200), max_queue=5000)
        self.worker = Worker(policy, self.launch, narrator, worker_id="w", model_path="m", epoch="0")

    async def launch(self, listener: EngineListener) -> Engine:
        """Start the engine."""
        engine = VirtualEngine(listener, random.Random(1), Weather(), 100, cells=ROOMY)
        self.hand = engine._hand
        self.hand.model.decode_ms = self.hand.model.prefill_row_ms = self.step_ms
        return engine

    async def start(self) -> None:
        """Wait until the engine is ready."""
        self.worker.start()
        await self.worker.ready.wait()

    def execute(self, priority: int, size: int, max_tokens: int) -> None:
        """Accept a job whose prompt shares only its beginning with another one's."""
        name = f"job-{len(self.jobs)}"
        prompt = f'{BEGINNING}{len(self.jobs)}": "{"x" * size}"}}'
        request = execute(name, prompt=prompt, max_tokens=max_tokens, priority=priority)
        self.jobs.append(self.worker.execute([request], "cor")[0].job)

    async def finish(self) -> None:
        """Wait until all jobs have ended, and have all their tokens."""
        while any(job.live for job in self.jobs):
            self.look()
            await asyncio.sleep(self.step_ms / 1000)
        ends = [job.terminal for job in self.jobs]
        assert all(isinstance(end, End) and end.stop_reason == "length" for end in ends)
        await self.worker.drain()

    def look(self) -> None:
        """Count the runs that wait in the engine."""
        self.most_waiting = max(self.most_waiting, len(self.hand.loop._scheduler.waiting))

    @property
    def computed(self) -> int:
        """Prompt tokens that the engine computed."""
        return sum(step.prompt_computed for step in self.hand.steps)

    @property
    def preemptions(self) -> int:
        """How often a run was preempted."""
        return sum(len(step.preempted) for step in self.hand.steps)

    def check_bounds(self) -> None:
        """Neither the runs in the engine nor the work for preempted runs grow with the levels."""
        assert self.most_waiting <= max_waiting(SEQUENCES) + SEQUENCES + AHEAD
        assert 0 < self.preemptions <= len(self.jobs), "an arrival costs more than one preemption"
        own = sum(1 + (job.prompt_length or 0) - SHARED for job in self.jobs)
        longest = max(job.prompt_length or 0 for job in self.jobs)
        assert self.computed <= SHARED + own + self.preemptions * longest


def test_a_chain_of_all_levels_keeps_few_runs_in_the_engine_and_serves_the_most_urgent_first() -> None:
    """Each level arrives before the one below it is served. The engine gives the least urgent runs back."""

    async def chain() -> None:
        await levels.start()
        for level in LEVELS:
            for _ in range(2 * SEQUENCES):
                levels.execute(level, size=20, max_tokens=4)
            await asyncio.sleep(0.2)
            levels.look()
        last_came = loop.time()
        await levels.finish()
        late = [job for job in levels.jobs if (job.ended_at or 0.0) > last_came]
        late.sort(key=lambda job: job.ended_at or 0.0)
        for number, job in enumerate(late):
            more_urgent = [other for other in late[number + 1 :] if other.order < job.order]
            assert len(more_urgent) < SEQUENCES + AHEAD, "it was served before its turn"

    with virtual_time() as loop:
        levels = Levels(step_ms=2.0)
        loop.run_until_complete(chain())
        assert not loop.failures, loop.failures
    assert any(step.returned for step in levels.hand.steps)
    levels.check_bounds()


def test_no_level_starves_while_jobs_of_all_levels_arrive_faster_than_they_are_served() -> None:
    """No job begins before one that has waited longer than all levels are worth."""

    async def overload() -> None:
        await levels.start()
        for _ in range(110):
            levels.execute(
                chance.choice(LEVELS), size=chance.randint(1, 60), max_tokens=chance.randint(1, 12)
            )
            await asyncio.sleep(3.5)
            levels.look()
        await levels.finish()

    chance = random.Random(5)
    with virtual_time() as loop:
        levels = Levels(step_ms=85.0)
        loop.run_until_complete(overload())
        assert not loop.failures, loop.failures
    latest = 0.0
    for job in sorted(levels.jobs, key=lambda job: job.started_at or 0.0):
        assert job.accepted.mono > latest - 2 * MAX_LEVELS * LEVEL_SEC
        latest = max(latest, job.accepted.mono)
    levels.check_bounds()
