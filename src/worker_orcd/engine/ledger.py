"""The ledger of KV cells: which run holds which sequence id, what is shared, what stays warm, what is free (G4).

The only place that knows sequence ids. It decides, carries its decisions out in the model's memory, and audits: the
model's own count of every sequence id is compared with the ledger's.

A *slot* is a sequence id with its cells. While a run computes in it the slot is live. When the run is over the slot
becomes warm: it belongs to nobody, a later run of the same namespace may start from it, and it is given up as soon as a
live run needs its cells or its id.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from worker_orcd.engine.audit import Difference, differences
from worker_orcd.engine.cells import Cells, Holder
from worker_orcd.engine.model import Model
from worker_orcd.engine.prefixes import PrefixIndex, Tokens
from worker_orcd.protocol.messages import AuditFault

WARM_SHARE = 0.25
"""The part of all cells that may stay warm. llama.cpp looks at all cells up to the highest one in use, so idle ones
make each step a little longer."""
MIN_SHARED = 32
"""A run waits for another one that is computing their common prefix only if that saves it so many tokens."""


class NoUsableSequence(Exception):
    """The model's memory does not do what the ledger asks; only a new process helps."""


@dataclass(slots=True, eq=False)
class Slot:
    """A sequence id and its cells: the first `computed` of `tokens` are in them.

    Attributes:
        id: the sequence id in the model.
        run: the run that computes in it, or did last.
        namespace: runs of the same namespace may start from these cells; None: no run may.
        reused: tokens that were in cells already when the slot was opened.
    """

    id: int
    run: int
    namespace: str | None
    tokens: list[int]
    holder: Holder = field(default_factory=lambda: Holder(live=True))
    reused: int = 0

    @property
    def computed(self) -> int:
        """Tokens that are in cells."""
        return self.holder.length


@dataclass(frozen=True, slots=True)
class Closed:
    """What became of a slot's cells: how many its run held, still holds against the ledger's will, and left warm."""

    before: int
    after: int
    warm: int


class Ledger:
    """Sequence ids and cells of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cells = Cells(model.facts.cells)
        # Memory that cannot be cut back has no part to hand over.
        self._keeps_warm = model.memory.trims and model.sequence_ids > model.facts.sequences
        self._max_warm = int(model.facts.cells * WARM_SHARE) if self._keeps_warm else 0
        self._free_ids = list(range(model.sequence_ids))
        self._quarantined: set[int] = set()
        """Free ids whose cells could not be freed. Each audit tries again."""
        self._dirty: dict[int, int] = {}
        """Cells of quarantined ids, by the model's count at the last audit."""
        self._live: dict[int, Slot] = {}
        """By run."""
        self._warm: OrderedDict[Slot, None] = OrderedDict()
        """Least recently used first."""
        self._prefixes: PrefixIndex[Slot] = PrefixIndex()
        self._last_run: dict[int, int] = {}
        """The run that held a sequence id last."""

    @property
    def held(self) -> int:
        """Cells of live slots, shared ones counted once, and cells that the model does not free."""
        return self._cells.held + sum(self._dirty.values())

    @property
    def warm(self) -> int:
        """Cells of warm slots that no live slot shares."""
        return self._cells.warm

    @property
    def live(self) -> int:
        """Number of live slots that hold cells."""
        return sum(slot.computed > 0 for slot in self._live.values())

    @property
    def resident(self) -> Iterator[Slot]:
        """All slots, live ones first."""
        yield from self._live.values()
        yield from self._warm

    # A run's slot, from its opening to its closing.

    def leader(self, tokens: Tokens, namespace: str | None) -> int | None:
        """The live run that is computing what these tokens begin with, and is worth waiting for; None without one."""
        if namespace is None or not self._keeps_warm:
            return None
        if self._model.memory.window is not None:
            return None  # A step may take the leader beyond its window, and it then has nothing to hand over.
        wanted = tokens[:-1]
        match = self._prefixes.longest(namespace, wanted, self._usable)
        have = match.length if match else 0
        for slot in self._live.values():
            if slot.namespace == namespace and slot.computed < len(slot.tokens):
                common = self._prefixes.common(namespace, slot, wanted)
                if common > slot.computed and common - have >= MIN_SHARED:
                    return slot.run
        return None

    def open(self, run: int, tokens: list[int], namespace: str | None) -> Slot:
        """A live slot for a run's tokens, with the longest prefix in it that the namespace has warm or live.

        The last token is always left to be computed, since its logits are needed.

        Raises:
            NoUsableSequence: no sequence id is free.
        """
        if not self._keeps_warm:
            namespace = None
        match = None if namespace is None else self._prefixes.longest(namespace, tokens[:-1], self._usable)
        if match is None:
            return self._enter(Slot(self._new_id(), run, namespace, tokens))
        source, length = match.key, match.length
        if source in self._warm and length == source.computed:
            return self._take_over(source, run, tokens, length)
        try:
            slot = Slot(self._new_id(keep=source), run, namespace, tokens, reused=length)
        except NoUsableSequence:
            if source not in self._warm:
                raise
            return self._take_over(source, run, tokens, length)
        self._model.copy(source.id, slot.id, length)
        slot.holder = self._cells.share(source.holder, length, live=True)
        if source in self._warm:
            self._warm.move_to_end(source)
        return self._enter(slot)

    def computed(self, slot: Slot, rows: int) -> None:
        """A step has computed the slot's next `rows` tokens."""
        self._cells.grow(slot.holder, rows)

    def restart(self, slot: Slot) -> None:
        """The slot's cells are not what they should be: free them. A live slot's tokens are computed again, with
        another id if this one stays dirty."""
        if slot in self._warm:
            self._give_up(slot)
            return
        self._cells.trim(slot.holder, 0)
        if self._trimmed(slot.id, 0):
            return
        if not self._free_ids:
            raise NoUsableSequence(f"sequence {slot.id} cannot be freed and no other is free")
        self._quarantined.add(slot.id)
        slot.id = heapq.heappop(self._free_ids)

    def close(self, slot: Slot) -> Closed:
        """The slot's run is over. Its cells become warm, or free where no later run could use them."""
        del self._live[slot.run]
        before = self._model.cells(slot.id)
        if slot.namespace is None or slot.computed == 0:
            return Closed(before, self._free(slot), 0)
        slot.tokens = slot.tokens[: slot.computed]
        self._prefixes.put(slot.namespace, slot, slot.tokens)
        if any(self._covers(other, slot) for other in self._warm):
            return Closed(before, self._free(slot), 0)
        self._cells.keep_warm(slot.holder)
        for other in [other for other in self._warm if self._covers(slot, other)]:
            self._give_up(other)
        self._warm[slot] = None
        while self._cells.warm > self._max_warm:
            self._give_up(next(iter(self._warm)))
        return Closed(before, 0, slot.computed if slot in self._warm else 0)

    # Room.

    def can_grow(self, cells: int) -> bool:
        """Whether so many cells are free or warm."""
        return cells <= self._cells.free + self._cells.warm

    def grow(self, cells: int) -> None:
        """Give up warm slots, least recently used first, until so many cells are free.

        Raises:
            ValueError: even then there are not as many.
        """
        while self._cells.free < cells:
            if not self._warm:
                raise ValueError(f"{cells} cells wanted, {self._cells.free} are free and none is warm")
            self._give_up(next(iter(self._warm)))

    def give_up_warm(self) -> bool:
        """Free everything warm. Whether there was anything."""
        had = bool(self._warm)
        while self._warm:
            self._give_up(next(iter(self._warm)))
        return had

    # The audit.

    def audit(self) -> list[AuditFault]:
        """Compare the ledger with the model's own count of every sequence id, and repair what differs.

        Returns:
            What differed.

        Raises:
            NoUsableSequence: the two cannot be made to agree.
        """
        for id_ in [id_ for id_ in self._quarantined if self._trimmed(id_, 0)]:
            self._quarantined.remove(id_)
            heapq.heappush(self._free_ids, id_)
        counted = [self._model.cells(id_) for id_ in range(self._model.sequence_ids)]
        expected = {slot.id: slot.computed for slot in self.resident}
        found = [d for d in differences(expected, counted) if d.sequence not in self._quarantined]
        faults = [self._repair(difference) for difference in found]
        self._dirty = {id_: counted[id_] for id_ in self._quarantined}
        return faults

    def _repair(self, difference: Difference) -> AuditFault:
        """Make one sequence id hold what it should: trim it, have its tokens computed again, or use it no more."""
        slot = next((slot for slot in self.resident if slot.id == difference.sequence), None)
        # Only plain attention is sure to be right behind its first tokens when what follows them is trimmed.
        trimmable = slot is None or self._model.memory.kind == "attention"
        if not (trimmable and self._trimmed(difference.sequence, difference.expected)):
            if slot is not None:
                self.restart(slot)
            else:
                self._free_ids.remove(difference.sequence)
                heapq.heapify(self._free_ids)
                self._quarantined.add(difference.sequence)
        return AuditFault(
            slot.run if slot else self._last_run.get(difference.sequence),
            f"sequence {difference.sequence} held {difference.counted} KV cells instead of {difference.expected}",
            repaired=difference.sequence not in self._quarantined,
        )

    def _trimmed(self, sequence: int, length: int) -> bool:
        self._model.trim(sequence, length)
        return self._model.cells(sequence) == length

    # Inside.

    def _hands_over(self, slot: Slot, length: int) -> bool:
        """Whether the first `length` cells of a slot are right without those behind them.

        Behind a sliding window llama.cpp gives cells away, so what remains of a sequence that was longer than its
        window is only good for going on from its end.
        """
        window = self._model.memory.window
        return window is None or slot.computed <= window or length >= slot.computed

    def _usable(self, slot: Slot, length: int) -> int:
        """How many of the first `length` tokens, which a new run shares with the slot, the slot can hand over."""
        length = min(length, slot.computed)
        return length if self._hands_over(slot, length) else 0

    def _enter(self, slot: Slot) -> Slot:
        self._live[slot.run] = slot
        if slot.namespace is not None:
            self._prefixes.put(slot.namespace, slot, slot.tokens)
        return slot

    def _take_over(self, slot: Slot, run: int, tokens: list[int], length: int) -> Slot:
        """Make a warm slot a run's own, with its first `length` cells."""
        del self._warm[slot]
        if length < slot.computed:
            self._model.trim(slot.id, length)
            self._cells.trim(slot.holder, length)
        self._cells.take(slot.holder)
        slot.run, slot.tokens, slot.reused = run, tokens, length
        return self._enter(slot)

    def _new_id(self, keep: Slot | None = None) -> int:
        """A free sequence id; a warm slot that is not `keep` is given up for one."""
        if not self._free_ids:
            oldest = next((slot for slot in self._warm if slot is not keep), None)
            if oldest is not None:
                self._give_up(oldest)
        if not self._free_ids:
            raise NoUsableSequence("every sequence id is in use or in quarantine")
        return heapq.heappop(self._free_ids)

    def _covers(self, slot: Slot, other: Slot) -> bool:
        """Whether one slot has all that a later run could take from another, whose run is over."""
        return (
            slot.namespace is not None
            and slot.namespace == other.namespace
            and self._prefixes.begins_with(slot.namespace, slot, other)
            and self._hands_over(slot, other.computed)
        )

    def _give_up(self, slot: Slot) -> None:
        del self._warm[slot]
        self._free(slot)

    def _free(self, slot: Slot) -> int:
        """Free a slot's cells and id. Where ids are to be without holes, the last live slot takes the id.

        Returns:
            Cells that the model does not free.
        """
        if slot.namespace is not None:
            self._prefixes.remove(slot.namespace, slot)
        self._model.trim(slot.id, 0)
        self._cells.trim(slot.holder, 0)
        self._last_run[slot.id] = slot.run
        hole, after = slot.id, self._model.cells(slot.id)
        if self._model.dense_ids and self._live and after == 0:
            last = max(self._live.values(), key=lambda other: other.id)
            if last.id > hole:
                self._model.move(last.id, hole)
                last.id, hole = hole, last.id
        heapq.heappush(self._free_ids, hole)
        return after
