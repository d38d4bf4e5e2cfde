"""Which connections are closed to make room: never one whose request is being answered (G10)."""

import pytest
from hypothesis import given, strategies as st

from worker_orcd.api.connections import Connections

BOUND = 4


class Open:
    """Connections by number, and which of them were closed."""

    def __init__(self) -> None:
        self.dropped: list[int] = []
        self.all: Connections[int] = Connections(self.dropped.append)

    def add(self, *numbers: int) -> list[bool]:
        """Add new ones."""
        return [self.all.add(number, BOUND) for number in numbers]


def test_the_oldest_unproven_makes_room_then_the_oldest_idle() -> None:
    """Whatever their order of arrival. A busy connection is never closed; a new one is refused instead."""
    opened = Open()
    opened.add(1, 2, 3, 4)
    for number in (1, 2, 3):
        opened.all.admit(number)
    opened.all.answered(2)
    opened.all.answered(1)
    assert opened.add(5) == [True]
    assert opened.dropped == [4]
    opened.all.admit(5)
    assert opened.add(6) == [True]
    assert opened.dropped == [4, 2], "it has been idle for longer than 1"
    opened.all.admit(6)
    opened.all.admit(1)
    assert opened.all.busy == BOUND
    assert opened.add(7) == [False]
    opened.all.remove(3)
    assert opened.add(8) == [True]
    assert opened.dropped == [4, 2]


def test_one_that_had_to_go_takes_no_place_any_more() -> None:
    """Later events of a closed connection change nothing."""
    opened = Open()
    opened.add(1, 2, 3, 4, 5)
    assert opened.dropped == [1]
    opened.all.admit(1)
    opened.all.answered(1)
    assert (len(opened.all), opened.all.busy) == (BOUND, 0)
    opened.all.remove(1)
    assert len(opened.all) == BOUND


@pytest.mark.parametrize("bound", [1, BOUND])
@given(st.lists(st.tuples(st.sampled_from(["add", "admit", "answered", "remove"]), st.integers(0, 20))))
def test_busy_ones_stay_and_the_bound_holds(bound: int, steps: list[tuple[str, int]]) -> None:
    """Both hold in any sequence of events."""
    dropped: list[int] = []
    connections: Connections[int] = Connections(dropped.append)
    known: set[int] = set()
    busy: set[int] = set()
    for what, number in steps:
        before = len(dropped)
        if what == "add":
            if number in known:
                continue
            if connections.add(number, bound):
                known.add(number)
            else:
                assert len(busy) == bound
        elif what == "admit":
            connections.admit(number)
            busy |= {number} & known
        elif what == "answered":
            connections.answered(number)
            busy.discard(number)
        else:
            connections.remove(number)
            busy.discard(number)
            known.discard(number)
        gone = set(dropped[before:])
        assert not gone & busy
        known -= gone
        assert (len(connections), connections.busy) == (len(known), len(busy))
        assert len(connections) <= bound
