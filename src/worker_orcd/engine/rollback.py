"""Rollback: restores every sequence to its state before an aborted or failed decode.

With attention, positions can be removed, so trimming the slots of the decode is enough. A recurrent state cannot be
shortened, and llama.cpp moves the states of all sequences while it computes: after an abort, the states of sequences
without a row in the decode are undefined as well. So for such memory (`Memory.trims` is false) all resident sequences
are saved before an abortable decode, and all are restored and trimmed after an abort. Three simpler methods gave wrong
text now and then: saving only the decode's sequences, copies under a spare sequence id, and llama.cpp's own rollback
slots (`n_rs_seq`).

A second repair is necessary. llama.cpp keeps states in slots, and marks the free slots that a decode skips as zeroed
before it zeroes them. After an abort, such slots are marked but not zeroed, and the next new sequence would begin with
the state of another one. Filling and freeing a slot removes the mark, so this is done with all free slots.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from worker_orcd.engine.model import Model, Outcome
from worker_orcd.engine.slot import Slot


@dataclass(slots=True)
class _Saved:
    """A copy of a slot's memory from when the slot held `length` tokens."""

    length: int
    memory: bytearray


class Rollback:
    """Saves and restores the slots of one model, in the way that its memory requires."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._saved: dict[Slot, _Saved] = {}

    def prepare(self, resident: Iterable[Slot]) -> None:
        """Save what an abort of the next decode would destroy. Copies of unchanged slots are reused."""
        if self._model.memory.trims:
            return
        slots = [slot for slot in resident if slot.computed > 0]
        spare = [old.memory for slot, old in self._saved.items() if slot not in slots]
        kept: dict[Slot, _Saved] = {}
        for slot in slots:
            old = self._saved.get(slot)
            if old is None or old.length != slot.computed:
                buffer = old.memory if old else spare.pop() if spare else None
                old = _Saved(slot.computed, self._model.save(slot.id, buffer))
            kept[slot] = old
        self._saved = kept

    def forget(self, slot: Slot) -> None:
        """Drop the copy of a slot whose tokens are computed again."""
        self._saved.pop(slot, None)

    def undo(self, resident: Iterable[Slot], computed: Iterable[Slot], outcome: Outcome) -> list[Slot]:
        """Restore all slots to their lengths before the decode.

        Args:
            resident: all slots of the ledger.
            computed: the slots with rows in the decode.
            outcome: how the decode ended.

        Returns:
            Slots whose memory is lost: all their tokens must be computed again.
        """
        if self._model.memory.trims or outcome is Outcome.NO_ROOM:
            # When llama.cpp finds no room, it writes nothing.
            return [slot for slot in computed if not self._trimmed(slot)]
        slots = list(resident)
        lost = [slot for slot in slots if not self._restored(slot)]
        for slot in lost:
            self._model.trim(slot.id, 0)
        self._reset_free_slots([slot for slot in slots if slot.computed > 0 and slot not in lost])
        return lost

    def _reset_free_slots(self, restored: list[Slot]) -> None:
        """Fill and free every id that belongs to none of these slots. Without slots, clear the whole memory."""
        if not restored:
            self._model.clear()
            return
        used = {slot.id for slot in restored}
        free = [id_ for id_ in range(self._model.sequence_ids) if id_ not in used]
        filling = self._saved[restored[0]].memory
        for id_ in free:
            self._model.restore(id_, filling)
        for id_ in free:
            self._model.trim(id_, 0)

    def _restored(self, slot: Slot) -> bool:
        if slot.computed > 0:
            saved = self._saved.get(slot)
            if saved is None or saved.length != slot.computed:
                return False
            if not self._model.restore(slot.id, saved.memory):
                return False
        return self._trimmed(slot)

    def _trimmed(self, slot: Slot) -> bool:
        trimmed = self._model.trim(slot.id, slot.computed)
        return trimmed and self._model.cells(slot.id) == slot.computed
