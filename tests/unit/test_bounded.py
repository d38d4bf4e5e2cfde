"""A bound shared by owners: what exceeds it is taken from the owner that holds most, and from no other owner."""

from collections import Counter

from hypothesis import given, strategies as st

from worker_orcd.bounded import BoundedByOwner

Added = tuple[str, int, int]
"""An owner, a name, a size."""


def holding(kept: BoundedByOwner[int, int], owner: str) -> list[int]:
    """The names that an owner holds, oldest first."""
    return [entry.name for entry in kept.of(owner)]


def test_the_owner_that_holds_most_loses_its_oldest() -> None:
    """The new value is kept and takes the place of that owner's oldest one."""
    kept: BoundedByOwner[int, int] = BoundedByOwner(3)
    for name in range(3):
        assert kept.add("anna", name, name) == []
    (lost,) = kept.add("berta", 7, 7)
    assert (lost.owner, lost.name) == ("anna", 0)
    assert (holding(kept, "anna"), holding(kept, "berta")) == ([1, 2], [7])


def test_among_equals_the_one_that_adds_loses() -> None:
    """An owner gains nothing by adding again and again."""
    kept: BoundedByOwner[int, int] = BoundedByOwner(2)
    kept.add("anna", 0, 0)
    kept.add("berta", 0, 0)
    assert kept.is_full_for("berta")
    assert [lost.owner for lost in kept.add("carla", 0, 0)] == ["carla"]
    assert [lost.owner for lost in kept.add("berta", 1, 0)] == ["berta"]
    assert holding(kept, "anna") == [0]


def test_only_the_oldest_are_dropped_while_they_are_old() -> None:
    """Values are dropped in the order in which they were added, up to the first that is not old; an old value
    behind it stays."""
    kept: BoundedByOwner[str, int] = BoundedByOwner(10)
    for owner, name, value in (("anna", "a", 1), ("berta", "b", 2), ("anna", "c", 9), ("berta", "d", 1)):
        kept.add(owner, name, value)
    assert [entry.name for entry in kept.drop_while(lambda value: value < 5)] == ["a", "b"]
    assert [entry.name for entry in kept] == ["c", "d"]
    assert (kept.total, kept.held("anna"), kept.held("berta")) == (2, 1, 1)
    assert kept.drop_while(lambda value: value < 5) == []


def test_a_value_in_place_of_another_is_the_newest() -> None:
    """A replaced value is counted once, and is then the newest."""
    kept: BoundedByOwner[int, str] = BoundedByOwner(10)
    kept.add("anna", 0, "old", 4)
    kept.add("anna", 1, "other", 2)
    kept.add("anna", 0, "new", 3)
    assert (kept.total, len(kept), kept.get("anna", 0)) == (5, 2, "new")
    assert [entry.name for entry in kept] == [1, 0]
    oldest = next(iter(kept), None)
    assert oldest is not None
    assert oldest.name == 1
    assert kept.remove("anna", 1) == "other"
    assert kept.remove("anna", 1) is None
    assert kept.held("anna") == 3


@given(
    st.integers(0, 30),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.integers(0, 6)), max_size=80),
)
def test_no_owner_within_its_share_ever_loses_anything(bound: int, adds: list[Added]) -> None:
    """For every sequence of additions: the bound holds, the counts agree with a recount, and an owner that never
    holds more than bound / owners keeps the latest value of each name."""
    kept: BoundedByOwner[int, int] = BoundedByOwner(bound)
    wanted: dict[str, dict[int, int]] = {}
    for owner, name, size in adds:
        full = kept.is_full_for(owner, size) if kept.get(owner, name) is None else None
        before = Counter({one: kept.held(one) for one in "abcd"})
        before[owner] += size - (kept.get(owner, name) is not None and _size(kept, owner, name))
        lost = kept.add(owner, name, size, size)
        wanted.setdefault(owner, {})[name] = size
        assert kept.total <= bound
        if full is not None:
            assert full == (bool(lost) and owner in {entry.owner for entry in lost[:1]})
        for entry in lost:
            assert before[str(entry.owner)] == max(before.values()), "not taken from the one that holds most"
            before[str(entry.owner)] -= entry.size
    entries = list(kept)
    assert kept.total == sum(entry.size for entry in entries)
    assert len(kept) == len(entries)
    for owner in "abcd":
        assert list(kept.of(owner)) == [entry for entry in entries if entry.owner == owner]
        assert kept.held(owner) == sum(entry.size for entry in kept.of(owner))
        sizes = [size for one, _, size in adds if one == owner]
        if sum(sizes) * 4 <= bound:
            assert {entry.name: entry.value for entry in kept.of(owner)} == wanted.get(owner, {})


def _size(kept: BoundedByOwner[int, int], owner: str, name: int) -> int:
    return next(entry.size for entry in kept.of(owner) if entry.name == name)
