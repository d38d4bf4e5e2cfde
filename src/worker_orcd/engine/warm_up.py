"""Computes steps of each kind before the first job, so that its steps are predicted from measurements."""

from collections.abc import Callable, Iterator

from worker_orcd.engine.model import AbortMode, Batch, Model
from worker_orcd.engine.planner import TILE_ROWS, CostEstimate, Plan
from worker_orcd.protocol.messages import StepCosts

SLOW_ROW_SEC = 1.0
"""If the first row takes longer, warm-up uses fewer rows."""


def warm_up(
    model: Model,
    cost: CostEstimate,
    clock: Callable[[], float],
    progressed: Callable[[], None],
    known: StepCosts = (),
) -> StepCosts:
    """Compute steps and update `cost` from them. Leaves every sequence empty.

    The very first step fills caches, and shows whether the model is too slow for a whole tile of rows.

    Args:
        model: computes the steps.
        cost: the estimate to update.
        clock: in seconds.
        progressed: called after each step.
        known: what an earlier engine measured. Then only the very first step is computed, because the jobs of a dead
            engine wait for this one.

    Returns:
        What was measured, or known.
    """
    started = clock()
    _compute(model, 1)
    progressed()
    slow = clock() - started > SLOW_ROW_SEC
    costs = known or tuple(_measured(model, clock, progressed, slow=slow))
    for rows, took_ms in costs:
        decoding = rows == 1
        cost.learn(Plan((), int(decoding), 0 if decoding else rows, 0, predicted_ms=0.0), took_ms)
    return costs


def _measured(
    model: Model, clock: Callable[[], float], progressed: Callable[[], None], *, slow: bool
) -> Iterator[tuple[int, float]]:
    for rows in (TILE_ROWS // 4, 1) if slow else (TILE_ROWS, TILE_ROWS // 4, 1):
        started = clock()
        _compute(model, rows)
        yield rows, (clock() - started) * 1000
        progressed()


def _compute(model: Model, rows: int) -> None:
    """Compute one step of this many rows, and free its cells."""
    wanted = [False] * (rows - 1) + [True]
    model.decode(Batch([0] * rows, list(range(rows)), [0] * rows, wanted), abort_mode=AbortMode.NONE)
    model.trim(0, 0)
