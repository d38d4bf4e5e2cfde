"""Computes steps of each kind before the first job, so that its steps are predicted from measurements."""

from collections.abc import Callable

from worker_orcd.engine.model import AbortMode, Batch, Model, Outcome
from worker_orcd.engine.planner import TILE_ROWS, CostEstimate, Plan
from worker_orcd.protocol.messages import StepCosts

MEASURED_ROWS = (TILE_ROWS // 4, TILE_ROWS)
"""The sizes of the steps that show what rows of prompts cost."""
MOST_MS = 10_000.0
"""A size is not measured if its rows may take longer: the jobs show it."""


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
        self._costs: dict[int, float] = {}
        """Milliseconds by rows."""

    def first_rows(self, known: StepCosts = (), progressed: Callable[[], None] = lambda: None) -> None:
        """Compute a step of one row, which fills caches and reads weights from the disk, and one that shows its cost.

        Args:
            known: what an earlier engine measured. Its jobs wait for this one, so the second step is left out.
            progressed: called after each step.
        """
        self._step_ms(1, AbortMode.NONE)
        progressed()
        for rows, took_ms in known or ((1, self._step_ms(1, AbortMode.NONE)[1]),):
            self._learn(rows, took_ms)
        progressed()

    def measure(self, progressed: Callable[[], None] = lambda: None) -> StepCosts:
        """Measure what prompts' rows cost, as far as that is not known. The interrupt byte ends it.

        Args:
            progressed: called after each step.

        Returns:
            All that is known now.
        """
        for rows in MEASURED_ROWS:
            if rows in self._costs or rows * self._costs[1] > MOST_MS:
                continue
            outcome, took_ms = self._step_ms(rows, AbortMode.ANY)
            if outcome is not Outcome.DONE:
                break
            self._learn(rows, took_ms)
            progressed()
        return self.costs

    @property
    def costs(self) -> StepCosts:
        """What is known."""
        return tuple(self._costs.items())

    def _step_ms(self, rows: int, abort_mode: AbortMode) -> tuple[Outcome, float]:
        """Compute one step of this many rows, and free its cells."""
        started = self._clock()
        batch = Batch([0] * rows, list(range(rows)), [0] * rows, [False] * (rows - 1) + [True])
        outcome = self._model.decode(batch, abort_mode=abort_mode)
        took_ms = (self._clock() - started) * 1000
        self._model.trim(0, 0)
        if outcome is not Outcome.DONE and not self._model.memory.trims:
            self._model.clear()  # As after any aborted step with such memory: see `Rollback`.
        return outcome, took_ms

    def _learn(self, rows: int, took_ms: float) -> None:
        self._costs[rows] = took_ms
        decoding = rows == 1
        plan = Plan((), int(decoding), 0 if decoding else rows, 0, predicted_ms=0.0)
        self._cost.learn(plan, took_ms)
