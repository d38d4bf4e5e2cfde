"""The ledger of KV cells: which run holds which sequence id, what is shared, what stays warm, what is free (G4).

No other module assigns sequence ids. The ledger decides, changes the model's memory accordingly, and audits: it
compares the model's own count of cells, for every sequence id, with its own.

A *slot* is a sequence id with its cells. While a run computes in a slot, the slot is live. When the run is over, the
slot becomes warm: it belongs to no run, a later run of the same namespace may start from it, and it is evicted as soon
as a live run needs its cells or its id. With a prefix store, slots are also copied to the store (`saving.py`), and
restored from there once they are no longer warm.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from worker_orcd.engine.audit import Difference, differences
from worker_orcd.engine.cells import Cells
from worker_orcd.engine.model import Model
from worker_orcd.engine.prefixes import PrefixIndex, TokenArray, Tokens, as_tokens
from worker_orcd.engine.saving import Saving
from worker_orcd.engine.slot import Closed, Leader, NoUsableSequence, Slot
from worker_orcd.protocol.messages import AuditFault

WARM_SHARE = 0.25
"""The share of all cells that may stay warm, since llama.cpp scans all cells up to the highest one in use…"""
SAVED_PART = 0.125
"""… and the part of it above which stored slots are evicted, unless no run is live: idle cells then cost nothing."""
MIN_SHARED = 32
"""A run waits for another run that is computing their common prefix only if that saves at least this many tokens."""


class Ledger:
    """Sequence ids and cells of one model."""

    def __init__(self, model: Model, saving: Saving | None = None) -> None:
        self._model = model
        self._saving = saving
        self._cells = Cells(model.facts.cells)
        self._keeps_warm = model.memory.trims and model.sequence_ids > model.facts.sequences
        self._max_warm = int(model.facts.cells * WARM_SHARE) if self._keeps_warm else 0
        self._free_ids = list(range(model.sequence_ids))
        self._quarantined: set[int] = set()
        """Free ids whose cells could not be freed. Each audit tries again."""
        self._audited = 0
        self._dirty: dict[int, int] = {}
        """Cells of quarantined ids, by the model's count at the last audit."""
        self._live: dict[int, Slot] = {}
        """By run."""
        self._warm: OrderedDict[Slot, None] = OrderedDict()
        """Least recently used first."""
        self._unsaved: OrderedDict[Slot, None] = OrderedDict()
        """Warm slots to be saved, oldest first."""
        self._prefixes: PrefixIndex[Slot] = PrefixIndex()
        self._last_run: dict[int, int] = {}
        """By sequence id: the last run that held it."""

    @property
    def held(self) -> int:
        """Cells of live slots (shared cells count once), and cells that the model failed to free."""
        return self._cells.held + sum(self._dirty.values())

    @property
    def warm(self) -> int:
        """Cells that only warm slots hold."""
        return self._cells.warm

    @property
    def live(self) -> int:
        """Number of live slots that hold cells."""
        return sum(slot.computed > 0 for slot in self._live.values())

    @property
    def resident(self) -> Iterator[Slot]:
        """All slots, live ones first."""
        yield from (*self._live.values(), *self._warm)

    # A run's slot, from open to close.

    def leader(self, tokens: Tokens, namespace: str | None) -> Leader | None:
        """The live run that is computing a prefix of these tokens and is worth waiting for; None if there is none."""
        if namespace is None or not (self._keeps_warm or self._saving):
            return None
        wanted = tokens[:-1]
        have: int | None = None
        for slot in self._live.values():
            if slot.namespace != namespace or slot.computed >= len(slot.tokens):
                continue
            common = self._prefixes.common(namespace, slot, wanted)
            if slot.checkpoint:
                common = slot.checkpoint if common >= slot.checkpoint else 0
            elif self._model.memory.window is not None:
                continue  # A step may move the slot beyond its window; then no other run can start from its cells.
            if common > slot.computed or self._model.is_aside(slot.id):
                have = self.available(namespace, wanted) if have is None else have
                if common - have >= MIN_SHARED:
                    shares = self._keeps_warm and not slot.checkpoint
                    return Leader(slot.run, common - MIN_SHARED + 1 if shares else common)
        return None

    def leads(self, leader: Leader) -> bool:
        """Whether a leader is live and has not yet computed the tokens that other runs wait for."""
        slot = self._live.get(leader.run)
        return slot is not None and (slot.computed < leader.tokens or self._model.is_aside(slot.id))

    def fits(self, tokens: TokenArray, namespace: str | None, beside: Sequence[Slot], growth: int) -> bool:
        """Whether the pool has enough cells for a run of these tokens, the live slots `beside`, and `growth` more
        cells. Cells that the run would share with a live slot count once."""
        wanted = self._cells.held_by(slot.holder for slot in beside) + sum(self._dirty.values()) + growth
        wanted += sum(len(slot.tokens) - slot.computed for slot in beside) + len(tokens)
        if namespace is not None and self._keeps_warm:
            shared = self._prefixes.longest(namespace, tokens[:-1], self._usable)
            if shared and shared.key in beside:
                saved = self._saved_length(namespace, tokens[:-1])
                wanted -= shared.length if saved < shared.length + MIN_SHARED else 0
        return wanted <= self._cells.total

    def open(self, run: int, tokens: list[int], namespace: str | None) -> Slot:
        """Open a live slot for a run's tokens. It starts with the namespace's longest warm, live or saved prefix.

        The last token is always computed again, because its logits are needed.

        Raises:
            NoUsableSequence: no sequence id is free.
        """
        if namespace is None or not (self._keeps_warm or self._saving):
            return self._enter(Slot(self._new_id(), run, None, tokens))
        wanted = as_tokens(tokens[:-1])
        if (restored := self._restored(run, tokens, wanted, namespace)) is not None:
            return restored
        match = self._prefixes.longest(namespace, wanted, self._usable) if self._keeps_warm else None
        saved = self._saved_length(namespace, wanted)
        if match is None:
            return self._enter(Slot(self._new_id(), run, namespace, tokens, saved=saved))
        source, length = match.key, match.length
        if self._model.is_aside(source.id) and not self._model.move_back(source.id):
            self._evict(source)
            return self.open(run, tokens, namespace)
        if source in self._warm and length == source.computed:
            return self._take_over(source, run, tokens, length)
        try:
            slot = Slot(self._new_id(keep=source), run, namespace, tokens, reused=length, saved=saved)
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
        """Count the slot's next `rows` tokens, which a step has computed."""
        self._cells.grow(slot.holder, rows)

    def restart(self, slot: Slot) -> None:
        """Free a slot whose cells are wrong. A live slot's tokens are then computed again, with another id if the cells
        of this one cannot be freed."""
        if slot in self._warm:
            self._evict(slot)
            return
        self._cells.trim(slot.holder, 0)
        slot.saved, slot.entry = 0, None
        if self._trimmed(slot.id, 0):
            return
        if not self._free_ids:
            raise NoUsableSequence(f"sequence {slot.id} cannot be freed and no other is free")
        self._quarantined.add(slot.id)
        slot.id = heapq.heappop(self._free_ids)

    def close(self, slot: Slot) -> Closed:
        """Close the slot of a run that has ended. Its cells become warm, or free if no later run could reuse them."""
        del self._live[slot.run]
        before = self._model.cells(slot.id)
        if slot.namespace is None or slot.computed == 0:
            return Closed(before, self._free(slot), 0)
        slot.tokens = slot.tokens[: slot.computed]
        if not self._keeps_warm:
            if self._saving and self._saving.worth_saving(slot):
                self._saving.save(slot, alone=not self._live)
            return Closed(before, self._free(slot), self.available(slot.namespace, slot.tokens))
        self._prefixes.put(slot.namespace, slot, slot.tokens)
        if any(self._covers(other, slot) for other in self._warm):
            return Closed(before, self._free(slot), slot.computed)
        self._cells.keep_warm(slot.holder)
        for other in [other for other in self._warm if self._covers(slot, other)]:
            self._evict(other)
        self._warm[slot] = None
        if self._saving and self._saving.worth_saving(slot):
            self._unsaved[slot] = None
        self._bound_warm()
        return Closed(before, 0, self.available(slot.namespace, slot.tokens))

    def save_next(self) -> bool:
        """Copy the slots that are due to the store. Returns whether any was; then more may be due."""
        if self._saving is None:
            return False
        self._saving.settle()
        due = [slot for slot in self._live.values() if self._saving.due(slot)]
        for slot in due:
            if slot is due[0] or slot.computed == slot.checkpoint:
                self._saving.save(slot, alone=len(self._live) == 1)
        if not due and self._unsaved:
            slot, _ = self._unsaved.popitem(last=False)
            self._saving.save(slot, alone=not self._live)
            self._bound_warm()
            return True
        return bool(due)

    def unshare(self, slot: Slot) -> None:
        """Count a slot's cells as its own, since they will be copied. So many must be free or warm."""
        if slot.holder.shared:
            self.grow(slot.computed)
            self._cells.own(slot.holder)

    def close_gaps(self) -> None:
        """Move live slots to free lower ids, where gaps between ids cost time. Called just before a step: new runs have
        taken their ids by then, and no stop waits for the copying."""
        while self._model.dense_ids and self._free_ids and self._live:
            last = max(self._live.values(), key=lambda slot: slot.id)
            gap = self._free_ids[0]
            if gap > last.id or not self._model.move(last.id, gap):
                return
            heapq.heapreplace(self._free_ids, last.id)
            last.id = gap

    # Room.

    def can_grow(self, cells: int) -> bool:
        """Whether at least this many cells are free or warm."""
        return cells <= self._cells.free + self._cells.warm

    def grow(self, cells: int) -> None:
        """Evict warm slots, least recently used first, until this many cells are free.

        Raises:
            ValueError: too few cells, even without warm slots.
        """
        while self._cells.free < cells:
            if not self._warm:
                raise ValueError(f"{cells} cells required, {self._cells.free} are free and none is warm")
            self._evict(next(iter(self._warm)))

    def evict_warm(self) -> bool:
        """Evict all warm slots. Returns whether there were any."""
        warm = list(self._warm)
        for slot in warm:
            self._evict(slot)
        return bool(warm)

    # The audit.

    def audit(self, *, whole: bool = True) -> list[AuditFault]:
        """Compare the ledger with the model's own count, for every sequence id, and repair differences. Returns them.
        If not `whole`, ids without cells are compared in turn, one each time.

        Raises:
            NoUsableSequence: a difference cannot be repaired.
        """
        damaged = self._saving.faults() if self._saving else []
        for id_ in [id_ for id_ in self._quarantined if self._trimmed(id_, 0)]:
            self._quarantined.remove(id_)
            heapq.heappush(self._free_ids, id_)
        expected = {slot.id: slot.computed for slot in self.resident}
        self._audited = (self._audited + 1) % self._model.sequence_ids
        ids = range(self._model.sequence_ids) if whole else {*expected, *self._quarantined, self._audited}
        counted = {id_: self._model.cells(id_) for id_ in ids}
        found = [d for d in differences(expected, counted) if d.sequence not in self._quarantined]
        faults = [self._repair(difference) for difference in found]
        self._dirty = {id_: counted[id_] for id_ in self._quarantined}
        return [*faults, *(AuditFault(None, text, repaired=True) for text in damaged)]

    def _repair(self, difference: Difference) -> AuditFault:
        """Repair one sequence id: trim it, have its tokens computed again, or stop using it."""
        slot = next((slot for slot in self.resident if slot.id == difference.sequence), None)
        # Only with plain attention are the first tokens certainly right after the rest is trimmed.
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

    def _usable(self, slot: Slot, length: int) -> int:
        """How many of the `length` leading tokens that a new run shares with the slot the run can reuse."""
        length = min(length, slot.computed)
        aside = slot.holder.live and self._model.is_aside(slot.id)
        return length if not aside and self._model.memory.hands_over(slot.computed, length) else 0

    def available(self, namespace: str | None, wanted: Tokens) -> int:
        """How many of these tokens a warm, live or saved prefix of the namespace provides."""
        if namespace is None:
            return 0
        pool = self._prefixes.longest(namespace, wanted, self._usable) if self._keeps_warm else None
        return max(pool.length if pool else 0, self._saved_length(namespace, wanted))

    def _restored(self, run: int, tokens: list[int], wanted: TokenArray, namespace: str) -> Slot | None:
        """A slot with a prefix from the store; None if no stored prefix is longer than the warm and live ones."""
        if self._saving is None:
            return None
        in_pool = self._prefixes.longest(namespace, wanted, self._usable)
        have = in_pool.length if in_pool else 0
        if in_pool is not None and not self._keeps_warm:
            # Here cells cannot be shared, but they can be copied through the store.
            if have >= MIN_SHARED + self._saved_length(namespace, wanted):
                self._saving.save(in_pool.key, alone=False)
            have = 0
        while (match := self._saving.longest(namespace, wanted)) and match.length >= have + MIN_SHARED:
            if not self.can_grow(match.key.tokens):
                return None
            self.grow(match.key.tokens)
            slot = Slot(self._new_id(), run, namespace, tokens, reused=match.length, saved=match.length)
            if self._saving.restore(match.key, slot.id, match.length):
                self._cells.grow(slot.holder, match.length)
                return self._enter(slot)
            self._return_id(slot.id)
        return None

    def _saved_length(self, namespace: str, wanted: Tokens) -> int:
        return match.length if self._saving and (match := self._saving.longest(namespace, wanted)) else 0

    def _bound_warm(self) -> None:
        """Evict warm slots beyond their share of the cells, except slots that are still to be saved."""
        most_saved = self._max_warm * (SAVED_PART if self._live else 1)
        too_many = self._cells.warm > most_saved
        for slot in [slot for slot in self._warm if too_many and slot not in self._unsaved]:
            saved = self._saved_length(slot.namespace or "", slot.tokens) >= slot.computed
            if self._cells.warm > (most_saved if saved else self._max_warm):
                self._evict(slot)

    def _return_id(self, id_: int) -> None:
        """Return an unused id. It is free again, or in quarantine until its cells can be freed."""
        if self._trimmed(id_, 0):
            heapq.heappush(self._free_ids, id_)
        else:
            self._quarantined.add(id_)

    def _enter(self, slot: Slot) -> Slot:
        self._live[slot.run] = slot
        self._bound_warm()
        if slot.namespace is not None:
            slot.checkpoint = self._saving.checkpoint(len(slot.tokens)) if self._saving else 0
            self._prefixes.put(slot.namespace, slot, slot.tokens)
        return slot

    def _take_over(self, slot: Slot, run: int, tokens: list[int], length: int) -> Slot:
        """Turn a warm slot into a run's live slot, with its first `length` cells."""
        del self._warm[slot]
        self._unsaved.pop(slot, None)
        if length < slot.computed:
            self._model.trim(slot.id, length)
            self._cells.trim(slot.holder, length)
        self._cells.take(slot.holder)
        slot.run, slot.tokens, slot.reused, slot.saved = run, tokens, length, min(slot.saved, length)
        slot.entry = None
        return self._enter(slot)

    def _new_id(self, keep: Slot | None = None) -> int:
        """A free sequence id. If none is free, evicts a warm slot other than `keep`."""
        oldest = next((slot for slot in self._warm if slot is not keep), None)
        if not self._free_ids and oldest is not None:
            self._evict(oldest)
        if not self._free_ids:
            raise NoUsableSequence("every sequence id is in use or in quarantine")
        return heapq.heappop(self._free_ids)

    def _covers(self, slot: Slot, other: Slot) -> bool:
        """Whether later runs can reuse from `slot` all that they could from `other`, whose run has ended."""
        return (
            slot.namespace is not None
            and slot.namespace == other.namespace
            and self._prefixes.begins_with(slot.namespace, slot, other)
            and self._model.memory.hands_over(slot.computed, other.computed)
        )

    def _evict(self, slot: Slot) -> None:
        del self._warm[slot]
        self._unsaved.pop(slot, None)
        self._free(slot)

    def _free(self, slot: Slot) -> int:
        """Free a slot's cells and id. Returns how many cells the model failed to free."""
        if slot.namespace is not None:
            self._prefixes.remove(slot.namespace, slot)
        self._model.trim(slot.id, 0)
        self._cells.trim(slot.holder, 0)
        self._last_run[slot.id] = slot.run
        heapq.heappush(self._free_ids, slot.id)
        return self._model.cells(slot.id)
