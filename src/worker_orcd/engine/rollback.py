"""Rollback: restore every sequence to its state before a decode that was aborted or failed.

Attention forgets positions, so trimming the slots of the decode is enough. A recurrent state cannot be cut back,
and llama.cpp moves the states of all sequences while it computes: after an abort the states of sequences without a row
in the decode are undefined as well. So for such memory (`Memory.trims` is false) all resident sequences are saved
before a decode that may be aborted, and all are restored and trimmed afterwards. The other ways that suggest
themselves give wrong text now and then: saving only the decode's sequences, copies under a spare sequence id, and
llama.cpp's own rollback slots (`n_rs_seq`).

One more thing has to be put right. llama.cpp keeps states in slots and marks the free slots that a decode passes over
as zeroed before it zeroes them. After an abort they are marked and not zeroed, and the next new sequence would begin
with another one's state. A slot loses the mark when it is filled and freed again, so all free slots are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from worker_orcd.engine.model import Model, Outcome
from worker_orcd.engine.slot import Slot


@dataclass(slots=True)
class _Saved:
    """A slot's memory when it held `length` tokens."""

    length: int
    memory: bytearray


class Rollback:
    """Saves and restores the slots of one model, as its memory needs it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._saved: dict[Slot, _Saved] = {}

    def prepare(self, resident: Iterable[Slot]) -> None:
        """Save what an abort of the next decode would destroy. What has not changed since it was saved is kept."""
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
        """Drop what is saved of a slot whose tokens are computed again."""
        self._saved.pop(slot, None)

    def undo(self, resident: Iterable[Slot], computed: Iterable[Slot], outcome: Outcome) -> list[Slot]:
        """Bring all slots back to their length of before the decode.

        Args:
            resident: all slots of the ledger.
            computed: those that had rows in the decode.
            outcome: how the decode ended.

        Returns:
            Slots whose memory is lost: their tokens have to be computed again from the first one.
        """
        if self._model.memory.trims or outcome is Outcome.NO_ROOM:
            # Without room llama.cpp writes nothing.
            return [slot for slot in computed if not self._trimmed(slot)]
        slots = list(resident)
        lost = [slot for slot in slots if not self._restored(slot)]
        for slot in lost:
            self._model.trim(slot.id, 0)
        self._reset_free_slots([slot for slot in slots if slot.computed > 0 and slot not in lost])
        return lost

    def _reset_free_slots(self, restored: list[Slot]) -> None:
        """Fill and free every id that none of these slots has. Without any the whole memory can be cleared."""
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
