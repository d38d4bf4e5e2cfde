"""The side pool of a model that a test computes by hand: strict, on the test's clock."""

from collections.abc import Callable

from worker_orcd.engine.model import Batch, Outcome
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.testing.scripted import ScriptedModel


class HandSide:
    """Sequences of a scripted model that are aside. Their cells stay in the model's lists.

    Attributes:
        slices: how many times a step was computed for a while.
        next_outcome: how the step in progress ends, if not as done.
        moves_fail, moves_back_fail: whether sequences cannot be moved, or not be moved back.
        during_slice: called while each slice is being computed.
        prepared: whether there is a buffer for moving sequences.
    """

    def __init__(self, model: ScriptedModel, cells: int, byte: InterruptByte) -> None:
        self._model = model
        self._cells = cells
        self._byte = byte
        self._batch: Batch | None = None
        self._left_ms = 0.0
        self.row_ms = 1.0
        self.now: Callable[[], float] = lambda: 0.0
        self.pass_to: Callable[[float], None] = lambda until: None
        self.cell_bytes = 1
        self.sequences: frozenset[int] = frozenset()
        self.slices = 0
        self.aborted = 0
        self.batches: list[Batch] = []
        self.next_outcome: Outcome | None = None
        self.moves_fail = self.moves_back_fail = False
        self.during_slice: Callable[[], None] = lambda: None
        self.prepared = True

    @property
    def room(self) -> int:
        """Free cells."""
        return self._cells - sum(map(self._model.cells, self.sequences))

    @property
    def in_progress(self) -> frozenset[int]:
        """Sequences with rows in progress."""
        return frozenset(self._batch.sequences if self._batch is not None else ())

    def prepare(self, tokens: int) -> bool:
        """As the test says."""
        assert tokens <= self._cells
        return self.prepared

    def begin(self, batch: Batch, predicted_ms: float) -> None:
        """Check that the rows follow the cells of sequences that are here."""
        assert self._batch is None, "a step is in progress"
        assert predicted_ms > 0
        following = {sequence: self._model.cells(sequence) for sequence in batch.sequences}
        for position, sequence in zip(batch.positions, batch.sequences, strict=True):
            assert sequence in self.sequences, f"sequence {sequence} is not aside"
            assert position == following[sequence]
            following[sequence] += 1
        assert not any(batch.wanted), "the last row belongs into a step of the streams"
        self._batch, self._left_ms = batch, self.row_ms * len(batch.tokens)
        self.batches.append(batch)

    def proceed(self, until: float) -> Outcome | None:
        """Pass the time of a slice; the rows are written when the step is done."""
        assert self._batch is not None, "no step is in progress"
        self.slices += 1
        self.during_slice()
        ms = 1.0 if self._byte.is_set() else max(1.0, (until - self.now()) * 1000)
        passes = min(ms, self._left_ms)
        self.pass_to(self.now() + passes / 1000)
        self._left_ms -= passes
        outcome, self.next_outcome = self.next_outcome, None
        if outcome is None and self._left_ms > 0:
            return None
        batch, self._batch = self._batch, None
        if outcome is None or outcome is Outcome.DONE:
            self._model.write(batch)
        return outcome or Outcome.DONE

    def abort(self) -> None:
        """Drop the rows in progress."""
        self.aborted += self._batch is not None
        self._batch = None

    def take(self, sequence: int) -> bool:
        """Move a sequence here."""
        assert sequence not in self.sequences
        if not self.moves_fail:
            self.sequences |= {sequence}
        return not self.moves_fail

    def release(self, sequence: int) -> bool:
        """Move a sequence back."""
        assert sequence in self.sequences - self.in_progress
        fails = self.moves_fail or self.moves_back_fail
        if not fails:
            self.sequences -= {sequence}
        return not fails
