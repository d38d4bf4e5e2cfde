"""Decides which run gets a slot next, and which run is preempted for it. Pure; the loop carries the decisions out.

A run waits from `Begin` until it gets a slot, and again after it was preempted. The first run in order (`urgency.py`)
gets the next slot as soon as it fits. No other run overtakes it, except while it waits for a live run that is computing
a prefix of its prompt.
"""

from collections.abc import Collection, Sequence as Ordered
from typing import Protocol

from worker_orcd.engine.prefixes import TokenArray, as_tokens
from worker_orcd.engine.run import Run
from worker_orcd.engine.slot import Leader, Slot
from worker_orcd.engine.urgency import Followers, gives_way, inherited_order, order

GROWTH_CELLS = 64
"""Number of cells that a run is expected to need before another run ends."""


def max_waiting(sequences: int) -> int:
    """The most runs that wait here: as many as the front hands over when none is preempted (`jobs/queue.py`). Only
    ever more urgent runs could make more of them wait."""
    return 2 * (sequences + 2)


class Live(Protocol):
    """A run that has a slot."""

    @property
    def run(self) -> Run:
        """The run."""

    @property
    def slot(self) -> Slot:
        """The run's slot."""


class Room(Protocol):
    """The ledger's interface for the scheduler: questions about runs without a slot."""

    def leader(self, tokens: TokenArray, namespace: str | None) -> Leader | None:
        """The live run for which a run with these tokens should wait; None: it should not wait."""

    def leads(self, leader: Leader) -> bool:
        """Whether a leader is live and has not yet computed the tokens that other runs wait for."""

    def fits(self, tokens: TokenArray, namespace: str | None, beside: Ordered[Slot], growth: int) -> bool:
        """Whether the pool has enough cells for these tokens, for the live slots `beside`, and for `growth` more."""


class Waiting:
    """A run without a slot, and its tokens as an array for the prefix index.

    `computed`: number of tokens in cells when the run was preempted.
    """

    def __init__(self, run: Run, computed: int) -> None:
        self.run = run
        self.computed = computed
        self.tokens = as_tokens([*run.prompt, *run.generated])
        self.growth = growth(run, len(run.generated))
        self._leader: Leader | None = None
        self._asked_at = -1

    def leader(self, room: Room, opened: int) -> Leader | None:
        """The live run that this run waits for. Queries the ledger again only after a new slot was opened, or when that
        run no longer leads, because the ledger compares whole prompts, before every step."""
        if self._leader is not None and not room.leads(self._leader):
            self._leader, self._asked_at = None, -1
        if self._leader is None and self._asked_at != opened:
            self._leader, self._asked_at = room.leader(self.tokens, self.run.request.cache), opened
        return self._leader


def growth(run: Run, generated: int) -> int:
    """Number of cells that a run is expected to need soon, in addition to those for its tokens so far."""
    return min(run.max_tokens - generated, GROWTH_CELLS)


class Scheduler:
    """The runs that wait for a slot."""

    def __init__(self, sequences: int) -> None:
        """`sequences`: how many runs can have a slot at the same time."""
        self._sequences = sequences
        self._waiting: dict[int, Waiting] = {}
        """In order."""
        self._opened = 0
        """Number of runs that got a slot so far."""

    @property
    def waiting(self) -> frozenset[int]:
        """The runs that wait."""
        return frozenset(self._waiting)

    def add(self, run: Run, computed: int = 0) -> None:
        """Add a run that begins, or one that was preempted with `computed` tokens in cells."""
        self._waiting[run.number] = Waiting(run, computed)
        self._waiting = dict(sorted(self._waiting.items(), key=lambda item: order(item[1].run)))

    def remove(self, run: int) -> Waiting | None:
        """Remove a run. Returns None if it did not wait."""
        return self._waiting.pop(run, None)

    def surplus(self) -> list[int]:
        """Remove the least urgent runs beyond the number that may wait here. They go back to the front."""
        beyond = list(self._waiting)[max_waiting(self._sequences) :]
        return [self._waiting.pop(run).run.number for run in beyond]

    def followers(self, room: Room) -> Followers:
        """The runs that wait for a live run's prefix."""
        found: dict[int, list[Run]] = {}
        for waiting in self._waiting.values():
            leader = waiting.leader(room, self._opened)
            if leader is not None:
                found.setdefault(leader.run, []).append(waiting.run)
        return found

    def awaited(self, room: Room) -> dict[int, int]:
        """By live run: the least number of its tokens that another run waits for."""
        found: dict[int, int] = {}
        for waiting in self._waiting.values():
            leader = waiting.leader(room, self._opened)
            if leader is not None:
                found[leader.run] = min(leader.tokens, found.get(leader.run, leader.tokens))
        return found

    def next(self, live: Collection[Live], room: Room) -> tuple[Run, list[Live]] | None:
        """Take the run that gets a slot now, and the live runs of which one must be preempted first (none if a slot is
        free).

        Returns None if no run waits or the first one does not fit yet. A run fits if there are enough cells for it and
        for the live runs that it may not preempt. If cells run out later, the least urgent live run is preempted.
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
        if staying and not room.fits(
            waiting.tokens, run.request.cache, [other.slot for other in staying], grown
        ):
            return None
        del self._waiting[run.number]
        self._opened += 1
        return run, [] if len(live) < self._sequences else giving_way


def least_urgent(live: Collection[Live], followers: Followers) -> Live:
    """The one of these runs that is preempted first."""
    return max(live, key=lambda other: inherited_order(other.run, followers))
