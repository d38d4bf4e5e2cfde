"""Ensures that other runs make progress after an aborted step, at any load and any rate of cancels. Pure.

The runs of an aborted step are *protected*: an ordinary cancel cannot abort their next step. Steps of protected runs
are planned short (`Pace.PROTECTED`) and are aborted only by an overdue stop: one that has waited for nearly 100 ms.
Each aborted step also shortens the following ones, because the next cancel is likely to come soon: during many cancels,
short steps complete, while long ones would be aborted again and again.
"""

from collections.abc import Iterable

from worker_orcd.engine.model import AbortMode
from worker_orcd.engine.planner import Pace

SHORT_STEPS = 4
"""Number of steps after an aborted one that are planned short."""
MAX_ABORTS_IN_A_ROW = 8
"""After this many aborted steps in a row, the next step is not abortable at all. Otherwise streams would starve on
machines where even a step of a single row takes longer than an overdue stop waits."""


class Recovery:
    """Tracks which runs are protected, and for how many steps the pace stays short."""

    def __init__(self) -> None:
        self._protected: set[int] = set()
        self._short_left = 0
        self._aborts_in_a_row = 0

    def aborted(self, undone: Iterable[int], computed: Iterable[int] = ()) -> None:
        """Note an aborted step: the runs that were not computed, and with `--exact` those that were."""
        self._protected = (self._protected - set(computed)) | set(undone)
        self._short_left = SHORT_STEPS
        self._aborts_in_a_row += 1

    def done(self, runs: Iterable[int]) -> None:
        """Note a completed step with these runs."""
        self._protected -= set(runs)
        self._short_left = max(0, self._short_left - 1)
        self._aborts_in_a_row = 0

    def protected(self, live: Iterable[int]) -> frozenset[int]:
        """The protected runs that are still live."""
        self._protected &= set(live)
        return frozenset(self._protected)

    def pace(self) -> Pace:
        """The pace of the next step."""
        if self._protected:
            return Pace.PROTECTED
        return Pace.SHORT if self._short_left else Pace.FULL

    def abort_mode(self) -> AbortMode:
        """Which stops may abort the next step."""
        if not self._protected:
            return AbortMode.ANY
        return AbortMode.NONE if self._aborts_in_a_row >= MAX_ABORTS_IN_A_ROW else AbortMode.OVERDUE
