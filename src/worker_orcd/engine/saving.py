"""When a slot is copied to the store in host memory, and how it comes back.

A slot's memory is copied whole, since llama.cpp copies nothing less of a sequence. So a long prompt is saved at
distances that grow with its length: what that costs stays below two percent of the computing, and an engine that dies
costs no more than one distance. Where a sequence cannot be cut back (recurrent states, sliding windows) only a whole
saved prefix can be taken up. There a step ends before the last token of a prompt, which is saved at that point: a later
prompt that begins with this one can start there.

The loop waits for a copy, and streams and stops wait for the loop. So what is predicted to take long is not copied.
"""

import time
from collections.abc import Callable

from worker_orcd.engine.model import Model
from worker_orcd.engine.prefix_store import Entry, PrefixStore
from worker_orcd.engine.prefixes import Match, Tokens
from worker_orcd.engine.slot import Slot

MIN_SAVED = 32
"""Fewer tokens are quicker to compute than to look after."""
EVERY = 256
"""Tokens between two copies of a slot that is computing…"""
GROWTH = 16
"""… and at least this part of its tokens, one of so many."""
ALONE_MS = 40.0
"""A copy that is predicted to take longer is not made, because of stops…"""
BESIDE_MS = 10.0
"""… and beside other runs, because of their streams."""
_FIRST_RATE = 2e6
_SMOOTHING = 0.2
_HOPE = 1.05
"""Each copy that is not made raises the predicted rate: otherwise one bad moment would end all copying."""


class Saving:
    """Copies slots of one model to one store, and back."""

    def __init__(self, model: Model, store: PrefixStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._store = store
        self._clock = clock
        self._rate = _FIRST_RATE
        """Bytes copied in a millisecond."""

    def checkpoint(self, tokens: int) -> int:
        """Where computing so many tokens has to pause, so that they can be saved; 0: nowhere."""
        pauses = not self._model.memory.hands_over(tokens, tokens - 1) and tokens > MIN_SAVED
        return tokens - 1 if pauses else 0

    def due(self, slot: Slot) -> bool:
        """Whether a slot that is computing should be saved now."""
        if slot.namespace is None or slot.computed <= slot.saved:
            return False
        return slot.computed == slot.checkpoint or slot.computed - slot.saved >= max(
            EVERY, slot.computed // GROWTH
        )

    def worth_saving(self, slot: Slot) -> bool:
        """Whether a slot whose run has ended holds enough that the store lacks."""
        return slot.namespace is not None and slot.computed - slot.saved >= MIN_SAVED

    def save(self, slot: Slot, *, alone: bool) -> None:
        """Copy a slot to the store, unless that takes too long or the store is too small. It then replaces what was
        saved of it before, and what it can hand over as well.

        Args:
            slot: it has a namespace.
            alone: whether no other run waits for the copy.
        """
        if slot.namespace is None:
            return
        tokens = slot.tokens[: slot.computed]
        slot.saved = slot.computed
        known = self._store.longest(slot.namespace, tokens, self._usable)
        if known is not None and known.length == slot.computed:
            return
        size = self._model.state_bytes(slot.id)
        if size > self._rate * (ALONE_MS if alone else BESIDE_MS):
            self._rate *= _HOPE
            return
        started = self._clock()
        entry = self._store.put(
            slot.namespace, tokens, size, lambda into: self._model.write_state(slot.id, into)
        )
        took_ms = (self._clock() - started) * 1000
        if took_ms > 0:
            self._rate += _SMOOTHING * (size / took_ms - self._rate)
        if entry is None:
            return
        replaced = [
            other
            for other in self._store.begun_by(entry)
            if other is slot.entry or self._model.memory.hands_over(entry.tokens, other.tokens)
        ]
        self._store.commit(entry, tuple(replaced))
        # A checkpoint is there for the prompts that begin with this one: it stays.
        slot.entry = None if slot.computed == slot.checkpoint else entry

    def longest(self, namespace: str, tokens: Tokens) -> Match[Entry] | None:
        """The entry with the longest prefix of these tokens."""
        return self._store.longest(namespace, tokens, self._usable)

    def restore(self, entry: Entry, sequence: int, length: int) -> bool:
        """Put the first `length` tokens of an entry into a free sequence. False: it did not work, the entry is dropped,
        and the sequence has to be trimmed."""
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
        """Drop what was replaced, once what replaces it is committed."""
        self._store.settle()

    def faults(self) -> list[str]:
        """What was found damaged since the last call."""
        return self._store.faults()

    def _usable(self, entry: Entry, length: int) -> int:
        return length if self._model.memory.hands_over(entry.tokens, length) else 0
