"""The side pool of a real model: steps that pause, are aborted and are moved leave no trace (G1, G6)."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.models.engine import TinyEngine
from tests.tiny import TinyModels
from worker_orcd.engine.model import AbortMode, Batch, Outcome
from worker_orcd.engine.side_pool import LlamaSidePool

ROWS = 96
LONG_AGO, NEVER = 0.0, float("inf")


@pytest.fixture
def engine(tiny_models: TinyModels) -> Iterator[TinyEngine]:
    """An engine of plain attention."""
    with closing(TinyEngine(tiny_models.path("llama"), parallel=2, cells=1024)) as engine:
        yield engine


@pytest.fixture
def side(engine: TinyEngine) -> LlamaSidePool:
    """Its side pool, which has sequence 0."""
    side = engine.model.side_pool()
    assert side is not None
    side.take(0)
    return side


def rows_of(first: int, count: int = ROWS) -> Batch:
    """Rows of sequence 0."""
    positions = list(range(first, first + count))
    return Batch([7 + n % 90 for n in positions], positions, [0] * count, [False] * count)


def finished(side: LlamaSidePool, until: float = NEVER) -> int:
    """Compute the step in progress. Returns how often it paused."""
    pauses = 0
    while (outcome := side.proceed(until)) is None:
        pauses += 1
    assert outcome is Outcome.DONE
    return pauses


def state(engine: TinyEngine) -> bytes:
    """All cells of sequence 0, wherever it is."""
    into = bytearray(engine.model.state_bytes(0))
    assert engine.model.write_state(0, memoryview(into)) == len(into)
    return bytes(into)


def undisturbed(engine: TinyEngine, side: LlamaSidePool, steps: int) -> bytes:
    """The cells after so many steps that nothing disturbs; they are removed again."""
    for step in range(steps):
        side.begin(rows_of(step * ROWS), 10.0)
        finished(side)
    cells = state(engine)
    side.pool.trim(0, 0)
    return cells


def test_a_step_that_pauses_after_each_operation_computes_the_same(
    engine: TinyEngine, side: LlamaSidePool
) -> None:
    """Also if the other context computes a step in each pause, which counts only the rows that are done."""
    expected = undisturbed(engine, side, 2)
    pauses = 0
    for step in range(2):
        side.begin(rows_of(step * ROWS), 1e6)
        while (outcome := side.proceed(LONG_AGO)) is None:
            pauses += 1
            assert engine.model.cells(0) == step * ROWS
            batch = Batch([5] * 3, [0, 1, 2], [1] * 3, [False, False, True])
            assert engine.model.decode(batch, abort_mode=AbortMode.NONE) is Outcome.DONE
            engine.model.trim(1, 0)
        assert outcome is Outcome.DONE
    assert pauses > 20
    assert engine.model.cells(0) == 2 * ROWS
    assert state(engine) == expected


def test_a_step_that_is_aborted_in_any_pause_leaves_no_trace(engine: TinyEngine, side: LlamaSidePool) -> None:
    """The cells before it stay, and the same step can be computed again."""
    expected = undisturbed(engine, side, 2)
    side.begin(rows_of(0), 10.0)
    finished(side)
    first = state(engine)
    side.begin(rows_of(ROWS), 1e6)
    pauses = finished(side, LONG_AGO)
    side.pool.trim(0, ROWS)
    for aborted_after in range(pauses):
        side.begin(rows_of(ROWS), 1e6)
        for _ in range(aborted_after):
            assert side.proceed(LONG_AGO) is None
        side.abort()
        assert (side.in_progress, engine.model.cells(0)) == (frozenset(), ROWS)
        assert state(engine) == first
    side.begin(rows_of(ROWS), 10.0)
    finished(side)
    assert state(engine) == expected


def test_an_interrupt_pauses_a_step_and_an_overdue_stop_aborts_it(
    engine: TinyEngine, side: LlamaSidePool
) -> None:
    """Its rows are then removed."""
    side.begin(rows_of(0), 1e6)
    engine.byte.set()
    started = time.monotonic()
    assert side.proceed(NEVER) is None
    assert time.monotonic() - started < 1.0
    engine.byte.set_overdue()
    outcome = None
    while outcome is None:
        outcome = side.proceed(NEVER)
    assert outcome is Outcome.ABORTED
    assert engine.model.cells(0) == 0
    engine.byte.clear()
    side.begin(rows_of(0), 1e6)
    finished(side)
    assert engine.model.cells(0) == ROWS


def test_a_sequence_is_moved_with_all_its_cells(engine: TinyEngine, side: LlamaSidePool) -> None:
    """There and back; a step in progress is not moved, and the buffer's memory is returned after the last one."""
    while not side.prepare(2 * ROWS):
        time.sleep(0.001)
    side.begin(rows_of(0), 10.0)
    finished(side)
    cells = state(engine)
    assert engine.model.move_back(0)
    assert (engine.model.is_aside(0), engine.model.cells(0), side.pool.cells(0)) == (False, ROWS, 0)
    assert state(engine) == cells
    assert engine.model.move_aside(0)
    assert (engine.model.is_aside(0), engine.model.cells(0), side.pool.cells(0)) == (True, ROWS, ROWS)
    assert state(engine) == cells
    assert engine.model.trim(0, 0)
    assert not engine.model.is_aside(0)
    assert side.room == 1024


def test_moving_fails_as_a_whole_if_there_is_no_room(engine: TinyEngine, side: LlamaSidePool) -> None:
    """The sequence stays where it is."""
    side.begin(rows_of(0), 10.0)
    finished(side)
    cells = state(engine)
    for first in (0, 512):
        other = Batch([9] * 512, list(range(first, first + 512)), [1] * 512, [False] * 512)
        assert engine.model.decode(other, abort_mode=AbortMode.NONE) is Outcome.DONE
    assert not engine.model.move_back(0)
    assert engine.model.is_aside(0)
    assert state(engine) == cells
    engine.model.trim(1, 0)
    assert engine.model.move_back(0)
    assert state(engine) == cells


@pytest.mark.parametrize(("side_cells", "same"), [(1024, True), (600, True), (512, False), (0, False)])
def test_a_model_whose_positions_depend_on_the_context_s_size_gets_no_smaller_one(
    tiny_models: TinyModels, *, side_cells: int, same: bool
) -> None:
    """LongRoPE has other factors for contexts up to the original length."""
    metadata: dict[str, Any] = {"phi3.rope.scaling.original_context_length": 512}
    path = tiny_models.path("phi3", **metadata)
    with closing(TinyEngine(path, parallel=2, cells=1024, side_cells=side_cells)) as engine:
        assert engine.model.may_have_side_pool == same
