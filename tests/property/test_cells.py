"""Properties of the cells' count: each cell counts once, is held or warm or free, and none is lost."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker_orcd.engine.cells import Cells, Holder

TOTAL = 60


class CellsBesideAPlainModel(RuleBasedStateMachine):
    """The reference model numbers all cells and gives every holder a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = Cells(TOTAL)
        self.plain: list[tuple[Holder, list[int]]] = []
        self.made = 0

    @rule(live=st.booleans())
    def begin(self, live: bool) -> None:
        """Add a holder without cells."""
        self.plain.append((Holder(live=live), []))

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        """A holder takes free cells; taking more than are free is refused and changes nothing."""
        holder, numbers = data.draw(st.sampled_from(self.plain))
        count = data.draw(st.integers(0, 20))
        if count > self.cells.free:
            with pytest.raises(ValueError, match="are free"):
                self.cells.grow(holder, count)
            return
        self.cells.grow(holder, count)
        numbers += range(self.made, self.made + count)
        self.made += count

    @precondition(lambda self: self.plain)
    @rule(data=st.data(), live=st.booleans())
    def share(self, data: st.DataObject, live: bool) -> None:
        """A second holder of the same cells needs no further cells."""
        holder, numbers = data.draw(st.sampled_from(self.plain))
        length = data.draw(st.integers(0, len(numbers)))
        free = self.cells.free
        self.plain.append((self.cells.share(holder, length, live=live), numbers[:length]))
        assert self.cells.free == free

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        """A holder is cut; cells that others share stay theirs."""
        holder, numbers = data.draw(st.sampled_from(self.plain))
        length = data.draw(st.integers(0, len(numbers)))
        self.cells.trim(holder, length)
        del numbers[length:]

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def own(self, data: st.DataObject) -> None:
        """A holder gets cells that no other one has, as many as it had; without free cells nothing changes."""
        holder, numbers = data.draw(st.sampled_from(self.plain))
        others = {number for other, shared in self.plain if other is not holder for number in shared}
        assert holder.shared == (not others.isdisjoint(numbers))
        if len(numbers) > self.cells.free:
            with pytest.raises(ValueError, match="are free"):
                self.cells.own(holder)
            return
        self.cells.own(holder)
        assert not holder.shared
        numbers[:] = range(self.made, self.made + len(numbers))
        self.made += len(numbers)

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        """Held cells become warm, warm ones held."""
        holder, _ = data.draw(st.sampled_from(self.plain))
        if holder.live:
            self.cells.keep_warm(holder)
        else:
            self.cells.take(holder)

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """A holder gives up all cells and is removed."""
        place = data.draw(st.integers(0, len(self.plain) - 1))
        self.cells.trim(self.plain[place][0], 0)
        del self.plain[place]

    @invariant()
    def sums_are_those_of_the_model(self) -> None:
        """Held, warm and free, and the length of each holder."""
        held = {number for holder, numbers in self.plain if holder.live for number in numbers}
        warm = {number for holder, numbers in self.plain if not holder.live for number in numbers} - held
        assert (self.cells.held, self.cells.warm) == (len(held), len(warm))
        assert self.cells.free == TOTAL - len(held | warm)
        some = self.plain[::2]
        assert self.cells.held_by(holder for holder, _ in some) == len(
            {n for _, numbers in some for n in numbers}
        )
        assert [holder.length for holder, _ in self.plain] == [len(numbers) for _, numbers in self.plain]


TestCells = CellsBesideAPlainModel.TestCase


def test_a_length_that_a_holder_does_not_have_is_refused() -> None:
    """It is refused, and nothing changes."""
    cells, holder = Cells(10), Holder(live=True)
    cells.grow(holder, 4)
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match="holder of 4"):
            cells.trim(holder, wrong)
        with pytest.raises(ValueError, match="holder of 4"):
            cells.share(holder, wrong, live=True)
    assert (cells.held, cells.free, holder.length) == (4, 6, 4)
