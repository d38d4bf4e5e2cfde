"""A slot: a sequence id with its cells, and the tokens in these cells."""

from dataclasses import dataclass, field

from worker_orcd.engine.cells import Holder
from worker_orcd.engine.prefix_store import Entry


class NoUsableSequence(Exception):
    """The model's memory cannot be brought into the state that the ledger needs. Only a new process helps."""


@dataclass(slots=True, eq=False)
class Slot:
    """A sequence id and its cells, which contain the first `computed` of `tokens`.

    Attributes:
        id: the sequence id in the model.
        run: the run that computes in the slot, or the last one that did.
        namespace: later runs of this namespace may start from these cells; None: no run may.
        reused: number of tokens that were taken from another slot or the store instead of computed.
        checkpoint: a step must end when this many tokens are computed, so that the slot can be saved; 0: no checkpoint.
        saved: number of tokens at the last attempt to save the slot.
        entry: the slot's entry in the store, which the next copy replaces.
    """

    id: int
    run: int
    namespace: str | None
    tokens: list[int]
    holder: Holder = field(default_factory=lambda: Holder(live=True))
    reused: int = 0
    checkpoint: int = 0
    saved: int = 0
    entry: Entry | None = None

    @property
    def computed(self) -> int:
        """Number of tokens in cells."""
        return self.holder.length

    @property
    def pending(self) -> int:
        """Number of tokens to compute before the next checkpoint, or before the next token can be drawn."""
        computed = self.holder.length
        return (self.checkpoint if computed < self.checkpoint else len(self.tokens)) - computed


@dataclass(frozen=True, slots=True)
class Leader:
    """A live run that is computing a prefix of other runs, and the number of its tokens that they wait for."""

    run: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The cells of a closed slot: how many its run held, how many could not be freed, and how many a later run can
    reuse (warm or in the store)."""

    before: int
    after: int
    warm: int
