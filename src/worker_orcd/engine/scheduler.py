"""Which run gets a slot next, and which one gives way. Pure: it decides, the loop carries it out.

A run waits from `Begin` until it has a slot, and again after it was preempted. The one that is first in order
(`urgency.py`) gets the next slot as soon as it fits; no other one overtakes it, except while it waits for a live run
that is computing what its prompt begins with.
"""

from collections.abc import Collection, Sequence as Ordered
from typing import Protocol

from worker_orcd.engine.prefixes import TokenArray, as_tokens
from worker_orcd.engine.run import Run
from worker_orcd.engine.slot import Slot
from worker_orcd.engine.urgency import may_preempt, order

GROWTH_CELLS = 64
"""Cells that a run is expected to grow by before another one ends and makes room."""


class Live(Protocol):
    """A run that has a slot."""

    @property
    def run(self) -> Run:
        """What it is."""

    @property
    def slot(self) -> Slot:
        """Where its tokens are."""


class Room(Protocol):
    """What the ledger of cells answers about runs without a slot."""

    def leader(self, tokens: TokenArray, namespace: str | None) -> int | None:
        """The live run that such a run had better wait for."""

    def fits(self, tokens: TokenArray, namespace: str | None, beside: Ordered[Slot], growth: int) -> bool:
        """Whether there are cells for such a run's tokens and those of these live slots, and `growth` more."""


class _Waiting:
    """A run without a slot, and its tokens as the index of prefixes looks them up: before every step."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokens = as_tokens([*run.prompt, *run.generated])
        self.growth = growth(run, len(run.generated))


def growth(run: Run, generated: int) -> int:
    """Cells that a run is expected to grow by soon, once its tokens so far are computed."""
    return min(run.max_tokens - generated, GROWTH_CELLS)


class Scheduler:
    """The runs that wait for a slot."""

    def __init__(self, sequences: int) -> None:
        """`sequences`: how many runs can have a slot at a time."""
        self._sequences = sequences
        self._waiting: dict[int, _Waiting] = {}

    @property
    def waiting(self) -> frozenset[int]:
        """The runs that wait."""
        return frozenset(self._waiting)

    def add(self, run: Run) -> None:
        """Add a run that is to begin, or to continue after it was preempted."""
        self._waiting[run.run] = _Waiting(run)

    def remove(self, run: int) -> None:
        """A run waits no more. Harmless if it does not."""
        self._waiting.pop(run, None)

    def next(self, live: Collection[Live], room: Room) -> tuple[Run, list[Live]] | None:
        """Take the run that gets a slot now, and the live ones of which one gives way to it first, if no slot is free.

        None: no run waits, or the first one does not fit yet. It fits if it fits beside those that it may not preempt.
        When cells run out later, the least urgent of all live runs gives way.
        """
        for waiting in sorted(self._waiting.values(), key=lambda waiting: order(waiting.run)):
            run = waiting.run
            if room.leader(waiting.tokens, run.cache) is not None:
                continue
            staying = [other for other in live if not may_preempt(run, other.run)]
            if len(staying) >= self._sequences:
                return None
            grown = waiting.growth + sum(
                growth(other.run, len(other.slot.tokens) - len(other.run.prompt)) for other in staying
            )
            if staying and not room.fits(waiting.tokens, run.cache, [other.slot for other in staying], grown):
                return None
            del self._waiting[run.run]
            if len(live) < self._sequences:
                return run, []
            return run, [other for other in live if may_preempt(run, other.run)]
        return None


def least_urgent(live: Collection[Live]) -> Live:
    """The run that is preempted first of these."""
    return max(live, key=lambda other: order(other.run))
