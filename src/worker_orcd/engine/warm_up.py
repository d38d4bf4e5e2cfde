"""Computes steps of each kind before the first job, so that its steps are predicted from measurements."""

from collections.abc import Callable, Iterable

from worker_orcd.engine.model import AbortMode, Batch, Model, Outcome
from worker_orcd.engine.planner import TILE_ROWS, CostEstimate, Plan
from worker_orcd.protocol.messages import StepCosts

SLOW_ROW_SEC = 1.0
"""If the first row takes longer, no more is measured: the jobs show it."""
MEASURED_ROWS = (TILE_ROWS, TILE_ROWS // 4)
"""The sizes of the steps that show what rows of prompts cost."""


class WarmUp:
    """Two parts: a worker waits for the first rows, but not for the measuring, which the first job ends."""

    def __init__(self, model: Model, cost: CostEstimate, clock: Callable[[], float]) -> None:
        """Prepare only.

        Args:
            model: computes the steps. Every sequence is empty, before and after.
            cost: the estimate to update.
            clock: in seconds.
        """
        self._model = model
        self._cost = cost
        self._clock = clock
        self._row_ms = 0.0

    def first_rows(self, known: StepCosts = ()) -> None:
        """Compute a step of one row, which fills caches and reads weights from the disk, and one that shows its cost.

        Args:
            known: what an earlier engine measured. Its jobs wait for this one, so the second step is left out.
        """
        self._row_ms = self._step_ms(1, AbortMode.NONE)[1]
        if not known and not self._is_slow:
            self._row_ms = self._step_ms(1, AbortMode.NONE)[1]
        self._expect(known or ((1, self._row_ms),))

    def measure(self, progressed: Callable[[], None] = lambda: None) -> StepCosts:
        """Measure what prompts' rows cost. The interrupt byte ends it.

        Args:
            progressed: called after each step.

        Returns:
            What was measured; empty if it was interrupted, or would take long.
        """
        if self._is_slow:
            return ()
        costs = [(1, self._row_ms)]
        for rows in MEASURED_ROWS:
            outcome, took_ms = self._step_ms(rows, AbortMode.ANY)
            if outcome is not Outcome.DONE:
                return ()
            costs.append((rows, took_ms))
            progressed()
        self._expect(costs[1:])
        return tuple(costs)

    @property
    def _is_slow(self) -> bool:
        return self._row_ms > SLOW_ROW_SEC * 1000

    def _step_ms(self, rows: int, abort_mode: AbortMode) -> tuple[Outcome, float]:
        """Compute one step of this many rows, and free its cells."""
        started = self._clock()
        batch = Batch([0] * rows, list(range(rows)), [0] * rows, [False] * (rows - 1) + [True])
        outcome = self._model.decode(batch, abort_mode=abort_mode)
        took_ms = (self._clock() - started) * 1000
        self._model.trim(0, 0)
        return outcome, took_ms

    def _expect(self, costs: Iterable[tuple[int, float]]) -> None:
        for rows, took_ms in costs:
            decoding = rows == 1
            plan = Plan((), int(decoding), 0 if decoding else rows, 0, predicted_ms=0.0)
            self._cost.learn(plan, took_ms)
