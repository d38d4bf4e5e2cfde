"""Seeded histories of the whole worker in virtual time (G2 to G8, G10, G11).

Core, supervisor, ladder, pulse, engine loop, planner, readers: all real; engines die, hang, ignore their kill, fail to
start and abort steps at random. A seed that fails replays exactly: `SIMULATION_SEEDS=7:8 pytest tests/simulation`.
"""

import asyncio
import os

import pytest

from tests.simulation.clock import virtual_time
from tests.simulation.world import World

FIRST, LAST = (int(seed) for seed in os.environ.get("SIMULATION_SEEDS", "0:160").split(":"))
CHUNKS = 8


def play(seed: int) -> World:
    """One history."""
    with virtual_time() as loop:
        asyncio.set_event_loop(loop)
        world = World(seed, loop)
        try:
            loop.run_until_complete(world.live())
            assert not loop.failures, loop.failures
        except BaseException as error:
            error.add_note(f"replay with SIMULATION_SEEDS={seed}:{seed + 1}")
            raise
        finally:
            loop.cancel_everything()
            asyncio.set_event_loop(None)
        return world


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_histories_keep_every_guarantee(chunk: int) -> None:
    """Whatever happens, in whatever order."""
    worlds = [play(seed) for seed in range(FIRST + chunk, LAST, CHUNKS)]
    if LAST - FIRST >= 100:
        jobs = [seen.job for world in worlds for seen in world.seen]
        assert any(job.carried_on for job in jobs), "nothing was carried on: the weather is too good"
        assert any(job.receipt is not None for job in jobs)
        assert any(len(world.engines) > 1 for world in worlds)


def test_a_seed_replays_exactly() -> None:
    """The same history, event for event."""
    first, again = ([[event.data() for event in seen.job.events] for seen in play(3).seen] for _ in range(2))
    assert first == again
