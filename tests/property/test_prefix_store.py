"""The prefix store against a dictionary, also as it is found after a death in the middle of a write, or damaged."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from random import Random

from hypothesis import given, settings, strategies as st

from tests.lanes import examples
from worker_orcd.engine.prefix_store import Entry, PrefixStore
from worker_orcd.supervisor.prefix_memory import prefix_memory
from worker_orcd.testing.harness import wait_until

Kept = dict[Entry, tuple[str, tuple[int, ...], bytes]]
"""The contents: namespace, tokens and state by entry."""

PUTS = st.tuples(
    st.just("put"),
    st.sampled_from(["a", "b"]),
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(0, 300_000),
)
USES = st.tuples(st.just("use"), st.integers(0, 50))
DROPS = st.tuples(st.just("drop"), st.integers(0, 50))
REOPENS = st.tuples(st.just("reopen"))
DIES = st.tuples(st.just("die"), st.integers(1, 300_000))
"""An engine dies while it writes a state of so many bytes."""
ACTIONS = st.lists(st.one_of(PUTS, PUTS, USES, DROPS, REOPENS, DIES), max_size=40)


class Died(Exception):
    """The process is killed here."""


@contextmanager
def memory(mib: int = 1) -> Iterator[int]:
    """A file for a store."""
    fd = prefix_memory(mib)
    yield fd
    os.close(fd)


def writes(state: bytes) -> Callable[[memoryview], int]:
    """Writes this state."""

    def write(into: memoryview) -> int:
        into[:] = state
        return len(state)

    return write


def dies_at_half(into: memoryview) -> int:
    """Writes half of a state; then the process dies."""
    into[: len(into) // 2] = b"x" * (len(into) // 2)
    raise Died


def put(
    store: PrefixStore, namespace: str, tokens: list[int], size: int, write: Callable[[memoryview], int]
) -> Entry | None:
    """Put an entry in and commit it."""
    entry = store.put(namespace, tokens, size, write)
    if entry is not None:
        store.commit(entry)
    return entry


def any_length(entry: Entry, length: int) -> int:
    """Read any part of an entry."""
    return length


def same(store: PrefixStore, kept: Kept) -> None:
    """The store's entries are complete and do not overlap."""
    for entry, (namespace, tokens, state) in kept.items():
        match = store.longest(namespace, list(tokens), any_length)
        assert match is not None
        assert match.length == len(tokens)
        found = store.state(entry)
        assert found is not None
        assert bytes(found) == state


def reopened(fd: int, store: PrefixStore, kept: Kept) -> tuple[PrefixStore, Kept]:
    """The next engine's store, and what has to be in it."""
    fresh = PrefixStore(fd, b"model")
    places = {(entry.record, entry.offset): held for entry, held in kept.items() if entry in store}
    found = {(entry.record, entry.offset): entry for entry in fresh.entries}
    assert found.keys() == places.keys()
    return fresh, {entry: places[place] for place, entry in found.items()}


@given(actions=ACTIONS)
@settings(deadline=None, max_examples=examples(60))
def test_what_is_found_is_what_was_put_in_whoever_died_in_between(actions: list[tuple[object, ...]]) -> None:
    """Entries are evicted, are dropped, and outlive engines; half-written ones are never found."""
    with memory() as fd:
        store, kept = PrefixStore(fd, b"model"), Kept()
        for action in actions:
            match action:
                case ("put", str(namespace), list(tokens), int(size)):
                    state = os.urandom(size)
                    entry = put(store, namespace, tokens, size, writes(state))
                    assert entry is not None
                    kept[entry] = namespace, tuple(tokens), state
                case ("use", int(which)) if kept:
                    store.state(list(kept)[which % len(kept)])
                case ("drop", int(which)) if kept:
                    store.drop(list(kept)[which % len(kept)])
                case ("die", int(size)):
                    try:
                        put(store, "a", [9, 9, 9], size, dies_at_half)
                    except Died:
                        store, kept = reopened(fd, store, kept)
                case ("reopen",):
                    store, kept = reopened(fd, store, kept)
            kept = {entry: held for entry, held in kept.items() if entry in store}
            assert len(kept) == len(store)
            assert store.used == sum(entry.size for entry in kept) <= store.capacity
            assert store.faults() == []
        same(store, kept)


@given(
    puts=st.lists(PUTS, min_size=1, max_size=6),
    damage=st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 0.999), st.integers(1, 255)),
        min_size=1,
        max_size=4,
    ),
    copied=st.none() | st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
@settings(deadline=None, max_examples=examples(100))
def test_damage_anywhere_never_comes_back_as_a_prefix(
    puts: list[tuple[str, str, list[int], int]],
    damage: list[tuple[int, bool, float, int]],
    copied: tuple[int, int] | None,
) -> None:
    """Whatever changes in entries and records, also if they are doubled, an engine gets what was put in or nothing."""
    with memory() as fd:
        store = PrefixStore(fd, b"model")
        for _, namespace, tokens, size in puts:
            put(store, namespace, tokens, size, writes(os.urandom(size)))
        entries = store.entries
        known = {
            (entry.namespace, entry.tokens, os.pread(fd, entry.bytes, entry.offset)) for entry in entries
        }
        for which, in_record, part, flipped in damage:
            entry = entries[which % len(entries)]
            start, length = (4096 + 64 * entry.record, 64) if in_record else (entry.offset, entry.bytes)
            place = start + int(part * length)
            os.pwrite(fd, bytes([os.pread(fd, 1, place)[0] ^ flipped]), place)
        if copied is not None:
            source, target = (4096 + 64 * entries[which % len(entries)].record for which in copied)
            os.pwrite(fd, os.pread(fd, 64, source), target)
        fresh = PrefixStore(fd, b"model")
        places = sorted((entry.offset, entry.offset + entry.size) for entry in fresh.entries)
        assert all(end <= start for (_, end), (start, _) in pairwise(places))
        for entry in fresh.entries:
            found = fresh.state(entry)
            if found is None:
                assert fresh.faults()
                continue
            data = os.pread(fd, entry.bytes, entry.offset)
            assert (entry.namespace, entry.tokens, data) in known
            assert data[entry.tokens * 4 :] == found


@given(
    sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=12),
    dropped=st.sets(st.integers(0, 11)),
    chance=st.integers(0, 2**32).map(Random),
)
@settings(deadline=None, max_examples=examples(20))
def test_a_thread_commits_what_is_still_wanted(sizes: list[int], dropped: set[int], chance: Random) -> None:
    """Each entry is found by the next engine, but those that were dropped or replaced, at whatever moment."""
    with memory() as fd:
        store = PrefixStore(fd, b"model", own_thread=True)
        kept = Kept()
        for number, size in enumerate(sizes):
            state = chance.randbytes(size)
            entry = store.put("a", [number], size, writes(state))
            assert entry is not None
            kept[entry] = "a", (number,), state
            last = [other for other in kept if other in store][-2:-1]
            store.commit(entry, tuple(last) if number % 3 == 0 else ())
            if number in dropped:
                store.drop(entry)
        wait_until(lambda: all(entry.committed for entry in store.entries))
        store.settle()
        kept = {entry: held for entry, held in kept.items() if entry in store}
        assert all(kept[entry][1] != (number,) for entry in kept for number in dropped)
        fresh, again = reopened(fd, store, kept)
        same(fresh, again)


def test_what_is_replaced_stays_until_its_successor_is_committed() -> None:
    """A death in between loses neither."""
    with memory() as fd:
        store = PrefixStore(fd, b"model")
        old = put(store, "a", [1], 10, writes(b"0123456789"))
        new = store.put("a", [1, 2], 10, writes(b"9876543210"))
        assert old is not None
        assert new is not None
        assert [entry.tokens for entry in PrefixStore(fd, b"model").entries] == [1]
        store.commit(new, (old,))
        assert [entry.tokens for entry in PrefixStore(fd, b"model").entries] == [2]


def test_another_model_s_prefixes_are_not_found() -> None:
    """For another model file or another library the store starts empty."""
    with memory() as fd:
        put(PrefixStore(fd, b"one"), "a", [1, 2, 3], 10, writes(b"0123456789"))
        assert len(PrefixStore(fd, b"one")) == 1
        assert len(PrefixStore(fd, b"two")) == 0
        assert len(PrefixStore(fd, b"one")) == 0


def test_the_least_recently_used_makes_room() -> None:
    """Also when it was used before the engine died."""
    with memory() as fd:
        store = PrefixStore(fd, b"model")
        size = store.capacity // 3 - 4096
        entries = [put(store, "a", [number], size, writes(bytes(size))) for number in range(3)]
        assert entries[0] is not None
        store.state(entries[0])
        after = PrefixStore(fd, b"model")
        for one in (store, after):
            put(one, "a", [3], size, writes(bytes(size)))
            assert [token for token in range(4) if one.longest("a", [token], any_length)] == [0, 2, 3]


def test_what_the_store_is_too_small_for_is_not_kept() -> None:
    """No other entry is evicted for it."""
    with memory() as fd:
        store = PrefixStore(fd, b"model")
        put(store, "a", [1], 10, writes(bytes(10)))
        assert put(store, "a", [2], 1 << 20, dies_at_half) is None
        assert len(store) == 1
