"""Rollback: bring every sequence back to what it was before a decode that did not end well.

Attention forgets positions, so trimming the sequences of the decode is enough. A recurrent state cannot be cut back,
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
from worker_orcd.engine.sequence import Sequence


@dataclass(slots=True)
class _Saved:
    """A sequence's memory when it held `length` tokens."""

    length: int
    memory: bytearray


class Rollback:
    """Saves and restores the sequences of one model, as its memory needs it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._saved: dict[Sequence, _Saved] = {}

    def prepare(self, resident: Iterable[Sequence]) -> None:
        """Save what an abort of the next decode would destroy. What has not changed since it was saved is kept."""
        if self._model.memory.trims:
            return
        sequences = [sequence for sequence in resident if sequence.computed > 0]
        spare = [old.memory for sequence, old in self._saved.items() if sequence not in sequences]
        kept: dict[Sequence, _Saved] = {}
        for sequence in sequences:
            old = self._saved.get(sequence)
            if old is None or old.length != sequence.computed:
                buffer = old.memory if old else spare.pop() if spare else None
                old = _Saved(sequence.computed, self._model.save(sequence.id, buffer))
            kept[sequence] = old
        self._saved = kept

    def forget(self, sequence: Sequence) -> None:
        """Drop what is saved of a sequence whose tokens are computed again."""
        self._saved.pop(sequence, None)

    def undo(self, resident: Iterable[Sequence], computed: set[int], outcome: Outcome) -> list[Sequence]:
        """Bring all sequences back to their length of before the decode.

        Args:
            resident: all sequences in the engine.
            computed: the runs that had rows in the decode.
            outcome: how the decode ended.

        Returns:
            Sequences whose memory is lost: their tokens have to be computed again from the first one.
        """
        if self._model.memory.trims or outcome is Outcome.NO_ROOM:
            # Without room llama.cpp writes nothing.
            touched = [sequence for sequence in resident if sequence.run.run in computed]
            return [sequence for sequence in touched if not self._trimmed(sequence)]
        sequences = list(resident)
        lost = [sequence for sequence in sequences if not self._restored(sequence)]
        for sequence in lost:
            self._model.trim(sequence.id, 0)
        self._reset_free_slots([s for s in sequences if s.computed > 0 and s not in lost])
        return lost

    def _reset_free_slots(self, restored: list[Sequence]) -> None:
        """Fill and free every slot that none of these sequences has. Without any the whole memory can be cleared."""
        if not restored:
            self._model.clear()
            return
        used = {sequence.id for sequence in restored}
        free = [id_ for id_ in range(self._model.facts.sequences) if id_ not in used]
        filling = self._saved[restored[0]].memory
        for id_ in free:
            self._model.restore(id_, filling)
        for id_ in free:
            self._model.trim(id_, 0)

    def _restored(self, sequence: Sequence) -> bool:
        if sequence.computed > 0:
            saved = self._saved.get(sequence)
            if saved is None or saved.length != sequence.computed:
                return False
            if not self._model.restore(sequence.id, saved.memory):
                return False
        return self._trimmed(sequence)

    def _trimmed(self, sequence: Sequence) -> bool:
        trimmed = self._model.trim(sequence.id, sequence.computed)
        return trimmed and self._model.cells(sequence.id) == sequence.computed
