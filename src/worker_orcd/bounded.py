"""A bound that several owners share fairly: no owner can push out what another one keeps.

For example:

    kept: BoundedByOwner[str, int] = BoundedByOwner(3)
    for number in range(3):
        kept.add("anna", f"job-{number}", number)
    kept.add("berta", "job-0", 7)  # Anna holds most: her oldest goes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Reversible
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

Name = TypeVar("Name")
Value = TypeVar("Value")
Owner = str | None
"""A tenant's name; None holds what belongs to no tenant."""


class Entry(NamedTuple, Generic[Name, Value]):
    """One value that is kept, and what it takes of the bound."""

    owner: Owner
    name: Name
    value: Value
    size: int


class BoundedByOwner(Generic[Name, Value]):
    """Values by owner and name, in the order in which they were added; their sizes together are bounded.

    What is over the bound is taken from the owner that holds most, its oldest first. So an owner that holds at most
    bound / owners never loses anything, whatever the others do. With one owner the oldest go.

    Adding over the bound looks at each owner; everything else takes constant time.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._total = 0
        self._all: OrderedDict[tuple[Owner, Name], Entry[Name, Value]] = OrderedDict()
        self._of: dict[Owner, OrderedDict[Name, Entry[Name, Value]]] = {}
        self._held: dict[Owner, int] = {}

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._all)

    def __iter__(self) -> Iterator[Entry[Name, Value]]:
        """All entries, oldest first."""
        return iter(self._all.values())

    @property
    def total(self) -> int:
        """The sizes of all values together."""
        return self._total

    def held(self, owner: Owner) -> int:
        """The sizes of an owner's values together."""
        return self._held.get(owner, 0)

    def get(self, owner: Owner, name: Name) -> Value | None:
        """The value an owner keeps under this name."""
        entry = self._all.get((owner, name))
        return None if entry is None else entry.value

    def of(self, owner: Owner) -> Reversible[Entry[Name, Value]]:
        """An owner's entries, oldest first."""
        return self._of.get(owner, OrderedDict()).values()

    def drop_while(self, is_old: Callable[[Value], bool]) -> list[Entry[Name, Value]]:
        """Drop the oldest entries for as long as this is true of their values. Returns them."""
        old = list(takewhile(lambda entry: is_old(entry.value), self._all.values()))
        for entry in old:
            self.remove(entry.owner, entry.name)
        return old

    def is_full_for(self, owner: Owner, size: int = 1) -> bool:
        """Whether a new value of this size would cost the owner one of its own."""
        if self._total + size <= self._bound:
            return False
        others = (held for other, held in self._held.items() if other != owner)
        return self.held(owner) + size >= max(others, default=0)

    def add(self, owner: Owner, name: Name, value: Value, size: int = 1) -> list[Entry[Name, Value]]:
        """Keep a value as the owner's newest, in place of one with the same name.

        Returns:
            What is not kept any more for the bound's sake; the value itself is among it if it alone is over the bound.
        """
        self.remove(owner, name)
        entry = Entry(owner, name, value, size)
        self._all[owner, name] = entry
        self._of.setdefault(owner, OrderedDict())[name] = entry
        self._held[owner] = self._held.get(owner, 0) + size
        self._total += size
        lost = []
        while self._total > self._bound:
            lost.append(self._take_from(self._holds_most(owner)))
        return lost

    def remove(self, owner: Owner, name: Name) -> Value | None:
        """Keep this value no longer. Returns it, if it was kept."""
        entry = self._all.pop((owner, name), None)
        if entry is None:
            return None
        own = self._of[owner]
        del own[name]
        self._held[owner] -= entry.size
        if not own:
            del self._of[owner], self._held[owner]
        self._total -= entry.size
        return entry.value

    def _holds_most(self, adding: Owner) -> Owner:
        """Of owners that hold equally much, the one that adds."""
        return max(self._held, key=lambda owner: (self._held[owner], owner == adding))

    def _take_from(self, owner: Owner) -> Entry[Name, Value]:
        entry = next(iter(self._of[owner].values()))
        self.remove(owner, entry.name)
        return entry
