"""How neighbours get on after an aborted step, whatever the load and the rate of cancels. Pure.

The runs of an aborted step are *owed* a step that is let through. Steps for owed runs are planned short
(`Pace.LET_THROUGH`) and only abort for a stop that is overdue: one that has waited for nearly 100 ms. Each aborted step
also makes the following ones short, since the next cancel is likely to come soon: in a storm short steps get done where
long ones would be aborted again and again.
"""

from collections.abc import Iterable

from worker_orcd.engine.model import Arming
from worker_orcd.engine.planner import Pace

SHORT_STEPS = 4
"""Steps after an aborted one that are planned short."""
MAX_ABORTS_IN_A_ROW = 8
"""After so many aborted steps without one that was done, the next is not aborted at all. A let-through step carries a
single row if need be; where one row takes longer than an overdue stop waits, streams would starve otherwise."""


class Recovery:
    """Keeps which runs are owed a step, and how long steps have to be short."""

    def __init__(self) -> None:
        self._owed: set[int] = set()
        self._short_left = 0
        self._aborts_in_a_row = 0

    def aborted(self, undone: Iterable[int], computed: Iterable[int] = ()) -> None:
        """A step was aborted. Some of its runs were not computed; with `--exact` others may have been."""
        self._owed = (self._owed - set(computed)) | set(undone)
        self._short_left = SHORT_STEPS
        self._aborts_in_a_row += 1

    def done(self, runs: Iterable[int]) -> None:
        """A step ended by itself, with these runs in it."""
        self._owed -= set(runs)
        self._short_left = max(0, self._short_left - 1)
        self._aborts_in_a_row = 0

    def owed(self, live: Iterable[int]) -> frozenset[int]:
        """The runs that are owed a step, of those that are still here."""
        self._owed &= set(live)
        return frozenset(self._owed)

    def pace(self) -> Pace:
        """How long the next step may be."""
        if self._owed:
            return Pace.LET_THROUGH
        return Pace.SHORT if self._short_left else Pace.FULL

    def arming(self) -> Arming:
        """Which stops may abort the next step."""
        if not self._owed:
            return Arming.ANY
        return Arming.NONE if self._aborts_in_a_row >= MAX_ABORTS_IN_A_ROW else Arming.OVERDUE
