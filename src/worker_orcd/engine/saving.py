"""Decides when a slot is copied to the prefix store, and restores slots from it.

llama.cpp can only copy the whole memory of a sequence. So a long prompt is saved at intervals that grow with its
length: saving then costs less than two percent of the computing, and the death of an engine loses at most one interval.
Where a sequence cannot be shortened (recurrent states, sliding windows), a saved prefix can only be reused as a whole.
There, a step ends before the last token of a prompt (the checkpoint), and the slot is saved at that point, so that a
later prompt that begins with this one can start from it.

The loop waits for a copy, and streams and stops wait for the loop. So a copy that is predicted to take long is skipped.
"""

import time
from collections.abc import Callable

from worker_orcd.engine.copy_rate import CopyRate
from worker_orcd.engine.model import Model
from worker_orcd.engine.prefix_store import Entry, PrefixStore
from worker_orcd.engine.prefixes import Match, Tokens
from worker_orcd.engine.slot import Slot

MIN_SAVED = 32
"""Fewer tokens are not worth saving: computing them is faster."""
EVERY = 256
"""Least number of tokens between two copies of a slot that is computing…"""
GROWTH = 16
"""… and at least one in this many of its tokens."""
ALONE_MS = 40.0
"""The longest predicted time of a copy, since stops wait for it…"""
BESIDE_MS = 10.0
"""… and beside other runs, since their streams wait, too."""
LAST_ROWS = 64
"""With fewer of a prompt's tokens left, the copy waits for them, since a client waits for the first token."""


class Saving:
    """Copies slots of one model to one store and back."""

    def __init__(self, model: Model, store: PrefixStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._store = store
        self._clock = clock
        self._rate = CopyRate()

    def checkpoint(self, tokens: int) -> int:
        """The number of a prompt's `tokens` after which a step must end so that the slot can be saved; 0: none."""
        pauses = not self._model.memory.hands_over(tokens, tokens - 1) and tokens > MIN_SAVED
        return tokens - 1 if pauses else 0

    def due(self, slot: Slot) -> bool:
        """Whether a slot that is computing should be saved now."""
        if slot.namespace is None or slot.computed <= slot.saved or self._model.is_computing(slot.id):
            return False
        if slot.computed == slot.checkpoint:
            return True
        if 1 < slot.pending <= LAST_ROWS:
            return False
        return slot.computed - slot.saved >= max(EVERY, slot.computed // GROWTH)

    def worth_saving(self, slot: Slot) -> bool:
        """Whether a slot whose run has ended holds enough tokens that are not in the store."""
        return slot.namespace is not None and slot.computed - slot.saved >= MIN_SAVED

    def save(self, slot: Slot, *, alone: bool) -> None:
        """Copy a slot to the store, unless that takes too long or the store is too small. The copy replaces the slot's
        earlier copy, and all entries that it makes redundant.

        Args:
            slot: the slot, whose namespace is not None.
            alone: whether no other run waits meanwhile.
        """
        if slot.namespace is None:
            return
        tokens = slot.tokens[: slot.computed]
        slot.saved = slot.computed
        known = self._store.longest(slot.namespace, tokens, self._usable)
        if known is not None and known.length == slot.computed:
            return
        size = self._model.state_bytes(slot.id)
        if not self._rate.allows(size, ALONE_MS if alone else BESIDE_MS):
            return
        started = self._clock()
        entry = self._store.put(
            slot.namespace, tokens, size, lambda into: self._model.write_state(slot.id, into)
        )
        self._rate.learn(size, (self._clock() - started) * 1000)
        if entry is None:
            return
        replaced = [
            other
            for other in self._store.begun_by(entry)
            if other is slot.entry or self._model.memory.hands_over(entry.tokens, other.tokens)
        ]
        self._store.commit(entry, tuple(replaced))
        # The copy at a checkpoint serves later prompts that begin with this one, so later copies do not replace it.
        slot.entry = None if slot.computed == slot.checkpoint else entry

    def longest(self, namespace: str, tokens: Tokens) -> Match[Entry] | None:
        """The entry with the longest reusable prefix of these tokens."""
        return self._store.longest(namespace, tokens, self._usable)

    def restore(self, entry: Entry, sequence: int, length: int) -> bool:
        """Load the first `length` tokens of an entry into a free sequence. Returns False if that failed; then the entry
        is dropped, and the sequence must be trimmed."""
        state = self._store.state(entry)
        if state is None:
            return False
        model = self._model
        whole = model.read_state(sequence, state) and model.cells(sequence) == entry.tokens
        if whole and length < entry.tokens:
            whole = model.trim(sequence, length) and model.cells(sequence) == length
        if not whole:
            self._store.reject(entry)
        return whole

    def settle(self) -> None:
        """Drop replaced entries whose replacement is committed."""
        self._store.settle()

    def faults(self) -> list[str]:
        """Descriptions of the damaged entries found since the last call."""
        return self._store.faults()

    def _usable(self, entry: Entry, length: int) -> int:
        return length if self._model.memory.hands_over(entry.tokens, length) else 0
