"""Which run gets a slot next, and which one gives way. Pure: it decides, the loop carries it out.

A run waits from `Begin` until it has a slot, and again after it was preempted. The one that is first in order
(`urgency.py`) gets the next slot as soon as it fits; no other one overtakes it, except while it waits for a live run
that is computing what its prompt begins with.
"""

from collections.abc import Collection, Sequence as Ordered
from typing import Protocol

from worker_orcd.engine.prefixes import TokenArray, as_tokens
from worker_orcd.engine.run import Run
from worker_orcd.engine.slot import Leader, Slot
from worker_orcd.engine.urgency import Followers, gives_way, inherited_order, order

GROWTH_CELLS = 64
"""Cells that a run is expected to grow by before another one ends and makes room."""


def max_waiting(sequences: int) -> int:
    """How many runs wait here at most: as many as the front hands over when none gives way to another
    (`jobs/queue.py`). More come only with ever more urgent ones."""
    return 2 * (sequences + 2)


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

    def leader(self, tokens: TokenArray, namespace: str | None) -> Leader | None:
        """The live run that such a run had better wait for."""

    def leads(self, leader: Leader) -> bool:
        """Whether a leader is still live and has not computed yet what others wait for."""

    def fits(self, tokens: TokenArray, namespace: str | None, beside: Ordered[Slot], growth: int) -> bool:
        """Whether there are cells for such a run's tokens and those of these live slots, and `growth` more."""


class Waiting:
    """A run without a slot, and its tokens as the index of prefixes looks them up.

    `computed`: how many of its tokens were in cells when it was preempted.
    """

    def __init__(self, run: Run, computed: int) -> None:
        self.run = run
        self.computed = computed
        self.tokens = as_tokens([*run.prompt, *run.generated])
        self.growth = growth(run, len(run.generated))
        self._leader: Leader | None = None
        self._asked_at = -1

    def leader(self, room: Room, opened: int) -> Leader | None:
        """The live run that it waits for. The ledger is asked again only after another slot was opened, or when that
        run leads no more: whole prompts are compared, before every step."""
        if self._leader is not None and not room.leads(self._leader):
            self._leader, self._asked_at = None, -1
        if self._leader is None and self._asked_at != opened:
            self._leader, self._asked_at = room.leader(self.tokens, self.run.cache), opened
        return self._leader


def growth(run: Run, generated: int) -> int:
    """Cells that a run is expected to grow by soon, once its tokens so far are computed."""
    return min(run.max_tokens - generated, GROWTH_CELLS)


class Scheduler:
    """The runs that wait for a slot."""

    def __init__(self, sequences: int) -> None:
        """`sequences`: how many runs can have a slot at a time."""
        self._sequences = sequences
        self._waiting: dict[int, Waiting] = {}
        """In order."""
        self._opened = 0
        """How many runs got a slot."""

    @property
    def waiting(self) -> frozenset[int]:
        """The runs that wait."""
        return frozenset(self._waiting)

    def add(self, run: Run, computed: int = 0) -> None:
        """Add a run that is to begin, or one that was preempted with so many tokens in cells."""
        self._waiting[run.run] = Waiting(run, computed)
        self._waiting = dict(sorted(self._waiting.items(), key=lambda item: order(item[1].run)))

    def remove(self, run: int) -> Waiting | None:
        """A run waits no more. None: it did not."""
        return self._waiting.pop(run, None)

    def surplus(self) -> list[int]:
        """Remove the least urgent of more runs than may wait here: they wait in the front."""
        beyond = list(self._waiting)[max_waiting(self._sequences) :]
        return [self._waiting.pop(run).run.run for run in beyond]

    def followers(self, room: Room) -> Followers:
        """The runs that wait for a live run's prefix."""
        found: dict[int, list[Run]] = {}
        for waiting in self._waiting.values():
            leader = waiting.leader(room, self._opened)
            if leader is not None:
                found.setdefault(leader.run, []).append(waiting.run)
        return found

    def next(self, live: Collection[Live], room: Room) -> tuple[Run, list[Live]] | None:
        """Take the run that gets a slot now, and the live ones of which one gives way to it first, if no slot is free.

        None: no run waits, or the first one does not fit yet. It fits if it fits beside those that it may not preempt.
        When cells run out later, the least urgent of all live runs gives way.
        """
        waiting = next((one for one in self._waiting.values() if not one.leader(room, self._opened)), None)
        if waiting is None:
            return None
        run, followers = waiting.run, self.followers(room)
        giving_way = [other for other in live if gives_way(other.run, run, followers)]
        staying = [other for other in live if other not in giving_way]
        if len(staying) >= self._sequences:
            return None
        grown = waiting.growth + sum(
            growth(other.run, len(other.slot.tokens) - len(other.run.prompt)) for other in staying
        )
        if staying and not room.fits(waiting.tokens, run.cache, [other.slot for other in staying], grown):
            return None
        del self._waiting[run.run]
        self._opened += 1
        return run, [] if len(live) < self._sequences else giving_way


def least_urgent(live: Collection[Live], followers: Followers) -> Live:
    """The run that is preempted first of these."""
    return max(live, key=lambda other: inherited_order(other.run, followers))
