"""Counts KV cells: held by runs, warm, shared or free. Pure.

A sequence that copies a prefix of another one shares the same cells, so adding up sequences would count these cells
twice. Here the cells form a forest: a *stretch* is a number of consecutive cells that follow its parent stretch, and a
holder holds the path from a root to its stretch. Copying a prefix adds a second holder of a part of that path.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Stretch:
    """`length` consecutive cells that follow those of `parent`, and how many holders' paths include them."""

    parent: "_Stretch | None"
    length: int
    live: int = 0
    warm: int = 0

    @property
    def holders(self) -> int:
        return self.live + self.warm


@dataclass(slots=True, eq=False)
class Holder:
    """A sequence's cells: the first `length` positions. `live`: they belong to a run; otherwise they are warm."""

    live: bool
    length: int = 0
    end: _Stretch | None = field(default=None, repr=False)

    @property
    def shared(self) -> bool:
        """Whether another holder has any of these cells, too."""
        stretch = self.end
        while stretch is not None and stretch.holders == 1:
            stretch = stretch.parent
        return stretch is not None


class Cells:
    """Counts the cells of a pool of `total`, each cell once.

    Attributes:
        total: cells of the pool.
        held: cells with at least one live holder.
        warm: cells with warm holders only; they can be evicted at any time.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self.warm = 0

    @property
    def free(self) -> int:
        """Cells without a holder."""
        return self.total - self.held - self.warm

    def held_by(self, holders: Iterable[Holder]) -> int:
        """Cells of these holders; shared cells count once."""
        counted: set[int] = set()
        cells = 0
        for holder in holders:
            stretch = holder.end
            while stretch is not None and id(stretch) not in counted:
                counted.add(id(stretch))
                cells += stretch.length
                stretch = stretch.parent
        return cells

    def grow(self, holder: Holder, cells: int) -> None:
        """Append cells to this holder alone.

        Raises:
            ValueError: too few cells are free.
        """
        if not 0 <= cells <= self.free:
            raise ValueError(f"{cells} cells required, {self.free} are free")
        if cells == 0:
            return
        end = holder.end
        if end is None or end.holders > 1:
            end = holder.end = _Stretch(end, 0, live=int(holder.live), warm=int(not holder.live))
        end.length += cells
        holder.length += cells
        self._count(cells, live=holder.live, by=1)

    def share(self, source: Holder, length: int, *, live: bool) -> Holder:
        """Add a holder of the first `length` cells of `source`.

        Raises:
            ValueError: the source has fewer cells.
        """
        made = Holder(live=live, length=length, end=self._cut(source, length))
        self._enter(made)
        return made

    def own(self, holder: Holder) -> None:
        """Give a holder cells of its own, as many as it has.

        Raises:
            ValueError: too few cells are free.
        """
        length = holder.length
        if length > self.free:
            raise ValueError(f"{length} cells required, {self.free} are free")
        self.trim(holder, 0)
        self.grow(holder, length)

    def trim(self, holder: Holder, length: int) -> None:
        """Remove the holder's cells after its first `length`; 0 removes all.

        Raises:
            ValueError: the holder has fewer cells.
        """
        rest = self._cut(holder, length)
        self._leave(holder)
        holder.end, holder.length = rest, length
        self._enter(holder)

    def keep_warm(self, holder: Holder) -> None:
        """Mark a holder's cells as warm, because its run has ended."""
        self._turn(holder, live=False)

    def take(self, holder: Holder) -> None:
        """Mark a warm holder's cells as held, because a run takes them over."""
        self._turn(holder, live=True)

    # Internals.

    def _turn(self, holder: Holder, *, live: bool) -> None:
        self._leave(holder)
        holder.live = live
        self._enter(holder)

    def _cut(self, holder: Holder, length: int) -> _Stretch | None:
        """The stretch that ends with the holder's first `length` cells. Splits a stretch that extends further."""
        if not 0 <= length <= holder.length:
            raise ValueError(f"{length} cells of a holder of {holder.length}")
        stretch, ends_at = holder.end, holder.length
        while stretch is not None and ends_at - stretch.length >= length:
            ends_at -= stretch.length
            stretch = stretch.parent
        if stretch is None or ends_at == length:
            return stretch
        # The lower part stays the same object, so holders that end there need no update.
        upper_length = stretch.length - (ends_at - length)
        upper = _Stretch(stretch.parent, upper_length, live=stretch.live, warm=stretch.warm)
        stretch.parent = upper
        stretch.length -= upper_length
        return upper

    def _enter(self, holder: Holder) -> None:
        stretch = holder.end
        while stretch is not None:
            before = stretch.live, stretch.warm
            if holder.live:
                stretch.live += 1
            else:
                stretch.warm += 1
            self._recount(stretch, *before)
            stretch = stretch.parent

    def _leave(self, holder: Holder) -> None:
        stretch = holder.end
        while stretch is not None:
            before = stretch.live, stretch.warm
            if holder.live:
                stretch.live -= 1
            else:
                stretch.warm -= 1
            self._recount(stretch, *before)
            stretch = stretch.parent

    def _recount(self, stretch: _Stretch, live: int, warm: int) -> None:
        """Update the sums after the holders of a stretch changed."""
        if live or warm:
            self._count(stretch.length, live=live > 0, by=-1)
        if stretch.holders:
            self._count(stretch.length, live=stretch.live > 0, by=1)

    def _count(self, cells: int, *, live: bool, by: int) -> None:
        if live:
            self.held += by * cells
        else:
            self.warm += by * cells
