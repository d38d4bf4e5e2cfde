"""A slot: a sequence id with its cells, and the tokens that are in them."""

from dataclasses import dataclass, field

from worker_orcd.engine.cells import Holder
from worker_orcd.engine.prefix_store import Entry


@dataclass(slots=True, eq=False)
class Slot:
    """A sequence id and its cells: the first `computed` of `tokens` are in them.

    Attributes:
        id: the sequence id in the model.
        run: the run that computes in it, or did last.
        namespace: runs of the same namespace may start from these cells; None: no run may.
        reused: tokens that did not have to be computed, since another slot or the store had them.
        checkpoint: a step ends when so many tokens are computed, so that they can be saved then; 0: none does.
        saved: of its tokens, as many were in the store when it was last saved, or were found to be too many for it.
        entry: its entry in the store, which the next one replaces.
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
        """Tokens that are in cells."""
        return self.holder.length

    @property
    def pending(self) -> int:
        """Tokens to compute before the next checkpoint, or before the next token can be drawn."""
        end = self.checkpoint if self.computed < self.checkpoint else len(self.tokens)
        return end - self.computed


@dataclass(frozen=True, slots=True)
class Leader:
    """A live run that is computing what other runs begin with, and how many of its tokens they wait for."""

    run: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Closed:
    """What became of a slot's cells: how many its run held, how many it still holds against the ledger's will, and how
    many a later run need not compute."""

    before: int
    after: int
    warm: int
