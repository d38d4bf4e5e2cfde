"""Counter-based randomness: what is drawn for a token depends on (seed, index) alone."""

from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.engine import counter_rng
from worker_orcd.engine.counter_rng import draw_seed

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, st.integers(0, 1_000_000), st.lists(st.tuples(SEEDS, st.integers(0, 1000)), max_size=5))
@settings(deadline=None)
def test_a_draw_depends_on_seed_and_index_alone(seed: int, index: int, others: list[tuple[int, int]]) -> None:
    """Draws of other jobs in between change nothing, so a requeued job draws the same numbers."""
    first = draw_seed(seed, index)
    for other_seed, other_index in others:
        draw_seed(other_seed, other_index)
    assert draw_seed(seed, index) == first


@pytest.mark.parametrize(
    ("seed", "index", "drawn"),
    [(0, 0, 0xDFEA758E), (42, 0, 0x0BF74462), (42, 1, 0x9576EF37), (2**64 - 1, 10**6, 0xB95113B4)],
)
def test_draws_stay_the_same_from_release_to_release(seed: int, index: int, drawn: int) -> None:
    """A seed that a client noted down gives the same text next year."""
    assert draw_seed(seed, index) == drawn


@given(SEEDS, st.integers(0, 2**40))
@settings(deadline=None)
def test_a_draw_is_a_32_bit_seed_and_never_the_one_that_means_any(seed: int, index: int) -> None:
    """llama.cpp takes 0xFFFFFFFF for "take a random one"."""
    assert 0 <= draw_seed(seed, index) < 0xFFFFFFFF


def test_when_the_hash_gives_the_forbidden_seed_another_one_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """That happens once in four billion draws, so a stand-in hash returns the forbidden value twice, then another
    one."""
    given_in_turn = [b"\xff\xff\xff\xff", b"\xff\xff\xff\xff", b"\x05\x00\x00\x00"]
    hashed: list[bytes] = []

    class Hash:
        def __init__(self, data: bytes, digest_size: int) -> None:
            assert digest_size == 4
            hashed.append(data)

        def digest(self) -> bytes:
            return given_in_turn[len(hashed) - 1]

    monkeypatch.setattr(counter_rng, "blake2b", Hash)
    assert draw_seed(1, 2) == 5
    assert len(set(hashed)) == 3, "each try hashes something else, or it would never end"


def test_neighbouring_seeds_and_indices_draw_unrelated_numbers() -> None:
    """No two of 40,000 neighbours are the same but by chance (expected: 0.2), and all values are used evenly."""
    drawn = [draw_seed(seed, index) for seed in range(200) for index in range(200)]
    assert len(set(drawn)) > len(drawn) - 5
    buckets = Counter(value >> 28 for value in drawn)
    assert set(buckets) == set(range(16))
    # 2,500 are expected in each, with a standard deviation of 48.
    assert all(2200 < count < 2800 for count in buckets.values())


def test_seed_and_index_are_not_interchangeable() -> None:
    """Job 3's token 5 is not job 5's token 3."""
    pairs = [(a, b) for a in range(30) for b in range(a)]
    assert all(draw_seed(a, b) != draw_seed(b, a) for a, b in pairs)


def test_each_bit_of_a_draw_is_as_often_set_as_not() -> None:
    """Over 4,000 indices of one seed."""
    drawn = [draw_seed(42, index) for index in range(4000)]
    for bit in range(32):
        assert 1800 < sum(value >> bit & 1 for value in drawn) < 2200
