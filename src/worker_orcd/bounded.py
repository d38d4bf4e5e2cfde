"""A bounded store that several owners share fairly: no owner's values displace another owner's.

For example:

    kept: BoundedByOwner[str, int] = BoundedByOwner(3)
    for number in range(3):
        kept.add("anna", f"job-{number}", number)
    kept.add("berta", "job-0", 7)  # Anna holds the most, so her oldest value is dropped.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Reversible
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

Name = TypeVar("Name")
Value = TypeVar("Value")
Owner = str | None
"""A tenant's name; None for values that belong to no tenant."""


class Entry(NamedTuple, Generic[Name, Value]):
    """One value, and its size."""

    owner: Owner
    name: Name
    value: Value
    size: int


class BoundedByOwner(Generic[Name, Value]):
    """Values by owner and name, in the order in which they were added. The sum of their sizes is bounded.

    Beyond the bound, the owner with the most loses its oldest values. So an owner that holds at most bound / owners
    never loses a value, whatever the others do.

    Adding beyond the bound takes time proportional to the number of owners; everything else takes constant time.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._total = 0
        self._all: OrderedDict[tuple[Owner, Name], Entry[Name, Value]] = OrderedDict()
        self._of: dict[Owner, OrderedDict[Name, Entry[Name, Value]]] = {}
        self._held: dict[Owner, int] = {}

    def __len__(self) -> int:
        """Number of values."""
        return len(self._all)

    def __iter__(self) -> Iterator[Entry[Name, Value]]:
        """All entries, oldest first."""
        return iter(self._all.values())

    @property
    def total(self) -> int:
        """The sum of all sizes."""
        return self._total

    def held(self, owner: Owner) -> int:
        """The sum of the sizes of an owner's values."""
        return self._held.get(owner, 0)

    def get(self, owner: Owner, name: Name) -> Value | None:
        """An owner's value with this name."""
        entry = self._all.get((owner, name))
        return None if entry is None else entry.value

    def of(self, owner: Owner) -> Reversible[Entry[Name, Value]]:
        """An owner's entries, oldest first."""
        return self._of.get(owner, OrderedDict()).values()

    def drop_while(self, is_old: Callable[[Value], bool]) -> list[Entry[Name, Value]]:
        """Drop and return the oldest entries, up to the first one for whose value `is_old` is false."""
        old = list(takewhile(lambda entry: is_old(entry.value), self._all.values()))
        for entry in old:
            self.remove(entry.owner, entry.name)
        return old

    def is_full_for(self, owner: Owner, size: int = 1) -> bool:
        """Whether adding a value of this size would drop another value of this owner."""
        if self._total + size <= self._bound:
            return False
        others = (held for other, held in self._held.items() if other != owner)
        return self.held(owner) + size >= max(others, default=0)

    def add(self, owner: Owner, name: Name, value: Value, size: int = 1) -> list[Entry[Name, Value]]:
        """Add a value as the owner's newest. Replaces a value with the same name.

        Returns:
            The entries dropped because of the bound. Includes the new one if it alone is larger than the bound.
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
        """Remove and return a value, if there is one."""
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
        """The owner that holds the most; among equals, the one that adds."""
        return max(self._held, key=lambda owner: (self._held[owner], owner == adding))

    def _take_from(self, owner: Owner) -> Entry[Name, Value]:
        entry = next(iter(self._of[owner].values()))
        self.remove(owner, entry.name)
        return entry
