"""Computes steps of each kind before the first job, so that its steps are predicted from measurements."""

from collections.abc import Callable

from worker_orcd.engine.model import AbortMode, Batch, Model
from worker_orcd.engine.planner import TILE_ROWS, CostEstimate, Plan

SLOW_ROW_SEC = 1.0
"""If the first row takes longer, warm-up uses fewer rows."""


def warm_up(
    model: Model, cost: CostEstimate, clock: Callable[[], float], progressed: Callable[[], None]
) -> None:
    """Compute steps and update `cost` from them. Leaves every sequence empty.

    The very first step fills caches, and shows whether the model is too slow for a whole tile of rows. Calls
    `progressed` after each step.
    """
    started = clock()
    _compute(model, 1)
    progressed()
    slow = clock() - started > SLOW_ROW_SEC
    for rows in (TILE_ROWS // 4, 1) if slow else (TILE_ROWS, TILE_ROWS // 4, 1):
        decoding = rows == 1
        started = clock()
        _compute(model, rows)
        took_ms = (clock() - started) * 1000
        cost.learn(Plan((), int(decoding), 0 if decoding else rows, 0, predicted_ms=0.0), took_ms)
        progressed()


def _compute(model: Model, rows: int) -> None:
    """Compute one step of this many rows, and free its cells."""
    wanted = [False] * (rows - 1) + [True]
    model.decode(Batch([0] * rows, list(range(rows)), [0] * rows, wanted), abort_mode=AbortMode.NONE)
    model.trim(0, 0)
