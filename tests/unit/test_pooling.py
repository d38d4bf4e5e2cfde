"""Embeddings of prompts: which tokens make them, whatever happens to the run meanwhile."""

import numpy as np
import pytest

from tests.fakes import HandLoop, run_message
from worker_orcd.engine.model import AbortMode, Batch
from worker_orcd.engine.pooling import NotFinite, Pool, Vector
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import Pooling

WORDS = "one prompt that is embedded, " * 3
VECTORS = np.array([[3, 4, 0], [0, 0, 12], [9, 8, 0]], np.float32)


def pooled(pooling: Pooling, dimensions: int = 0) -> list[float]:
    """Of three tokens, after a first attempt that was given up."""
    pool = Pool(pooling, 3, dimensions)
    for position in (0, 1, 0, 1, 2):
        if pool.wants(position):
            pool.add(position, VECTORS[position])
    return [float(x) for x in np.frombuffer(pool.whole(), "<f4")]


@pytest.mark.parametrize(
    ("pooling", "expected"), [("cls", VECTORS[0]), ("last", VECTORS[2]), ("mean", VECTORS.mean(axis=0))]
)
def test_an_embedding_is_the_direction_of_what_is_pooled(pooling: Pooling, expected: Vector) -> None:
    """Of length one; also of the first dimensions alone."""
    assert pooled(pooling) == pytest.approx(expected / np.linalg.norm(expected))
    first = expected[:2]
    assert pooled(pooling, 2) == pytest.approx(first / np.linalg.norm(first))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_what_has_no_direction_is_no_embedding(value: float) -> None:
    """It would be a list of what JSON cannot say."""
    pool = Pool("last", 1, 0)
    pool.add(0, np.array([value], np.float32))
    with np.errstate(invalid="ignore"), pytest.raises(NotFinite):
        pool.whole()


def by_definition(run: Run, pooling: Pooling) -> bytes:
    """The embedding of a run's prompt, from those of its tokens, computed one by one."""
    loop = HandLoop()
    pool = Pool(pooling, len(run.prompt), run.request.embed or 0)
    for position, token in enumerate(run.prompt):
        batch = Batch([token], [position], [0], [True], embeds=True)
        loop.model.decode(batch, abort_mode=AbortMode.NONE)
        if pool.wants(position):
            pool.add(position, loop.model.embedding(0))
    loop.close()
    return pool.whole()


def embedding(loop: HandLoop, run: int) -> bytes:
    """What the engine reported at the run's end."""
    (end,) = [end for step in loop.steps for end in step.ended if end.run == run]
    assert (end.reason, end.cells_after) == ("stop", 0)
    return end.embedding


def loop_of(pooling: Pooling, *, parallel: int = 4, exact: bool = False) -> HandLoop:
    """A loop around a model with this pooling."""
    loop = HandLoop(parallel=parallel, exact=exact)
    loop.model.pooling = pooling
    loop.model.embeds_behind_prefix = pooling == "last"
    return loop


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_run_for_an_embedding_generates_nothing(pooling: Pooling, exact: bool) -> None:
    """Beside others, over several steps, although a run before it has left the same prompt warm."""
    loop = loop_of(pooling, exact=exact)
    loop.post(run_message(1, WORDS, cache="a", max_tokens=1))
    loop.finish()
    wanted = run_message(2, WORDS, cache="a", embed=5, max_tokens=0)
    loop.post(wanted, run_message(3, "beside", max_tokens=9))
    loop.finish()
    assert embedding(loop, 2) == by_definition(wanted, pooling)
    assert (loop.tokens(2), len(loop.tokens(3))) == ([], 9)
    loop.close()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_aborted_steps_change_no_embedding(pooling: Pooling) -> None:
    """Each second step is aborted."""
    loop = loop_of(pooling)
    wanted = run_message(1, WORDS * 4, embed=0, max_tokens=0)
    loop.post(wanted)
    loop.abort_each_second_step(3)
    loop.finish()
    assert embedding(loop, 1) == by_definition(wanted, pooling)
    loop.close()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_preempted_run_gets_the_same_embedding(pooling: Pooling) -> None:
    """Its tokens are computed again."""
    loop = loop_of(pooling, parallel=1)
    wanted = run_message(1, WORDS * 8, embed=0, max_tokens=0, priority=1)
    loop.post(wanted)
    loop.turn()
    loop.post(run_message(2, "urgent", order=-1.0, max_tokens=2))
    loop.finish()
    assert any(step.preempted for step in loop.steps)
    assert embedding(loop, 1) == by_definition(wanted, pooling)
    loop.close()
