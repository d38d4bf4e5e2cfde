"""The ledger of cells over a model without arithmetic: what stays warm, what is reused, what is evicted."""

from collections.abc import Callable, Iterator

import pytest

from tests.fakes import HandClock, HandModel
from worker_orcd.engine.ledger import MIN_SHARED, Ledger
from worker_orcd.engine.model import AbortMode, Batch, Memory, Outcome
from worker_orcd.engine.prefixes import as_tokens
from worker_orcd.engine.slot import Slot
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load

PARALLEL = 3
CELLS = 800


class Pool:
    """A ledger over the hand-held model, with the steps of a loop cut down to what the ledger sees of them."""

    def __init__(self, byte: InterruptByte, *, exact: bool = False, memory: Memory | None = None) -> None:
        load = Load("scripted", "worker", None, PARALLEL, CELLS, exact, 1, "json")
        self.model = HandModel(load, byte, HandClock())
        if memory is not None:
            self.model.memory = memory
        self.ledger = Ledger(self.model)
        self._run = 0

    def open(self, tokens: list[int], namespace: str | None = "a") -> Slot:
        """A slot for the next run."""
        self._run += 1
        return self.ledger.open(self._run, list(tokens), namespace)

    def compute(self, slot: Slot, rows: int | None = None) -> int:
        """Compute so many tokens of a slot, or all that are not. Returns how many."""
        rows = len(slot.tokens) - slot.computed if rows is None else rows
        self.ledger.grow(rows)
        places = range(slot.computed, slot.computed + rows)
        batch = Batch([slot.tokens[p] for p in places], list(places), [slot.id] * rows, [False] * rows)
        assert self.model.decode(batch, abort_mode=AbortMode.NONE) is Outcome.DONE
        self.ledger.computed(slot, rows)
        return rows

    def run(self, tokens: list[int], namespace: str | None = "a") -> int:
        """Open, compute and close. Returns how many tokens were computed."""
        slot = self.open(tokens, namespace)
        computed = self.compute(slot)
        assert self.model._cells[slot.id] == tokens
        self.ledger.close(slot)
        return computed

    def check(self) -> None:
        """The model holds what the ledger has counted, for each sequence and in total."""
        assert self.ledger.audit() == []
        assert self.model.cells_in_use() == self.ledger.held + self.ledger.warm


MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Makes pools."""
    byte = InterruptByte.create()

    def make(*, exact: bool = False, memory: Memory | None = None) -> Pool:
        return Pool(byte, exact=exact, memory=memory)

    yield make
    byte.close()


@pytest.fixture
def pool(make_pool: MakePool) -> Iterator[Pool]:
    """One with memory that can be cut back; checked at the end."""
    made = make_pool()
    yield made
    made.check()


def numbers(first: int, count: int) -> list[int]:
    """So many tokens, from this one on."""
    return list(range(first, first + count))


def test_a_closed_run_s_cells_stay_warm_and_belong_to_nobody(pool: Pool) -> None:
    """They are counted as warm, not as held."""
    slot = pool.open(numbers(0, 50))
    pool.compute(slot)
    assert (pool.ledger.held, pool.ledger.warm) == (50, 0)
    closed = pool.ledger.close(slot)
    assert (closed.before, closed.after, closed.warm) == (50, 0, 50)
    assert (pool.ledger.held, pool.ledger.warm, pool.ledger.live) == (0, 50, 0)


def test_the_same_prompt_again_computes_its_last_token_only(pool: Pool) -> None:
    """Its logits are needed."""
    assert pool.run(numbers(0, 50)) == 50
    assert pool.run(numbers(0, 50)) == 1
    assert pool.ledger.warm == 50


def test_a_longer_prompt_computes_what_is_new(pool: Pool) -> None:
    """The next turn of a conversation; the shorter prefix is not kept beside the longer one."""
    pool.run(numbers(0, 50))
    assert pool.run(numbers(0, 80)) == 30
    assert pool.ledger.warm == 80


def test_the_next_turn_computes_nothing_of_what_a_run_generated(pool: Pool) -> None:
    """Its tokens so far are reused, not only its prompt."""
    slot = pool.open(numbers(0, 50))
    pool.compute(slot)
    for token in numbers(50, 20):
        slot.tokens.append(token)
        pool.compute(slot)
    pool.ledger.close(slot)
    assert pool.run(numbers(0, 80)) == 10


def test_a_prompt_that_branches_off_shares_the_common_part(pool: Pool) -> None:
    """Both branches stay warm; their common cells are counted once."""
    pool.run(numbers(0, 50))
    assert pool.run([*numbers(0, 40), *numbers(500, 20)]) == 20
    assert pool.ledger.warm == 70
    assert pool.run(numbers(0, 60)) == 10
    assert pool.run([*numbers(0, 40), *numbers(500, 25)]) == 5


def test_a_shorter_prompt_takes_its_part_and_leaves_the_longer_one(pool: Pool) -> None:
    """A retry of an earlier turn does not destroy the later one."""
    pool.run(numbers(0, 80))
    assert pool.run(numbers(0, 30)) == 1
    assert pool.run(numbers(0, 81)) == 1


def test_a_run_that_was_closed_early_leaves_what_it_had_computed(pool: Pool) -> None:
    """A cancel in the middle of a prompt."""
    slot = pool.open(numbers(0, 100))
    pool.compute(slot, 60)
    assert pool.ledger.close(slot).warm == 60
    assert pool.run(numbers(0, 100)) == 40


@pytest.mark.parametrize("namespace", ["b", "", None])
def test_nothing_is_taken_from_another_namespace(pool: Pool, namespace: str | None) -> None:
    """Nor by a run without a namespace."""
    pool.run(numbers(0, 50), "a")
    assert pool.run(numbers(0, 50), namespace) == 50


def test_a_run_without_a_namespace_leaves_nothing(pool: Pool) -> None:
    """`cache_prompt: false`."""
    pool.run(numbers(0, 50), None)
    assert pool.ledger.warm == 0
    assert pool.model.cells_in_use() == 0


def test_warm_cells_give_way_to_a_run_that_needs_them_oldest_first(pool: Pool) -> None:
    """They delay no run; the most recently used go last."""
    for first in (0, 1000, 2000):
        pool.run(numbers(first, 60))
    pool.run(numbers(0, 60))
    slot = pool.open(numbers(5000, 700), None)
    pool.compute(slot)
    assert pool.ledger.warm <= CELLS - 700
    assert pool.ledger.can_grow(CELLS - 700)
    assert not pool.ledger.can_grow(CELLS - 699)
    pool.ledger.close(slot)
    assert pool.run(numbers(2000, 60)) == 60
    assert pool.run(numbers(0, 60)) == 1


def test_a_sequence_id_is_taken_from_the_oldest_warm_slot(pool: Pool) -> None:
    """There may be more prefixes than sequence ids."""
    for n in range(40):
        pool.run(numbers(100 * n, 4))
    assert pool.run(numbers(100 * 39, 4)) == 1
    assert pool.run(numbers(0, 4)) == 4
    live = [pool.open(numbers(7000 + n, 3)) for n in range(PARALLEL)]
    assert len({slot.id for slot in live}) == PARALLEL


def test_warm_cells_are_bounded(pool: Pool) -> None:
    """Idle cells make each step longer."""
    for n in range(12):
        pool.run(numbers(1000 * n, 40))
    assert pool.ledger.warm <= CELLS // 4


def test_a_live_run_shares_what_it_has_computed(pool: Pool) -> None:
    """While it runs; its own end takes nothing from the other run."""
    first = pool.open(numbers(0, 100))
    pool.compute(first, 60)
    second = pool.open([*numbers(0, 50), *numbers(700, 10)])
    assert second.reused == 50
    pool.compute(first)
    pool.ledger.close(first)
    pool.compute(second)
    assert pool.model._cells[second.id] == second.tokens
    assert pool.ledger.held == 60
    assert pool.ledger.warm == 50


def test_what_a_run_shares_with_a_live_one_is_counted_once(pool: Pool) -> None:
    """To the cell; what it would take from a warm one is not there yet, and no other namespace's is."""
    warm, common = list(range(1000, 1200)), list(range(300))
    pool.run(warm)
    first = pool.open([*common, 7, 7, 7])
    pool.compute(first, 250)
    room = CELLS - len(first.tokens)

    def fits(tokens: list[int], growth: int, namespace: str | None = "a") -> bool:
        return pool.ledger.fits(as_tokens(tokens), namespace, [first], growth)

    assert fits([*common, 8], room - 301 + 250)
    assert not fits([*common, 8], room - 301 + 250 + 1)
    for tokens, namespace in ((warm, "a"), ([*common, 8], "b"), ([*common, 8], None)):
        assert fits(tokens, room - len(tokens), namespace)
        assert not fits(tokens, room - len(tokens) + 1, namespace)


def test_what_a_run_shares_with_one_that_gives_way_is_not_counted(pool: Pool) -> None:
    """Its cells are needed whole beside those that stay."""
    common = list(range(300))
    first, other = pool.open([*common, 7]), pool.open(list(range(1000, 1100)))
    pool.compute(first)
    pool.compute(other)
    tokens, room = as_tokens([*common, 8]), CELLS - 100 - 301
    assert pool.ledger.fits(tokens, "a", [other], room)
    assert not pool.ledger.fits(tokens, "a", [other], room + 1)
    assert pool.ledger.fits(tokens, "a", [other, first], CELLS - 100 - 301 - 1)


def test_a_run_waits_for_one_that_is_computing_their_common_prefix(pool: Pool) -> None:
    """Until the other run has computed it or has ended; but not for a few tokens."""
    first = pool.open(numbers(0, 200))
    pool.compute(first, 40)
    prompt = [*numbers(0, 150), *numbers(900, 10)]
    leader = pool.ledger.leader(prompt, "a")
    assert leader is not None
    assert (leader.run, pool.ledger.leads(leader)) == (first.run, True)
    assert pool.ledger.leader(prompt, "b") is None
    assert pool.ledger.leader([*numbers(0, 40 + MIN_SHARED - 1), 7000, 7001], "a") is None
    pool.compute(first, 110)
    assert not pool.ledger.leads(leader)
    assert pool.ledger.leader(prompt, "a") is None
    second = pool.open(prompt)
    assert second.reused == 150
    pool.ledger.close(first)
    assert pool.ledger.leader(numbers(0, 200), "a") is None


def test_memory_that_cannot_be_cut_back_keeps_nothing_warm(make_pool: MakePool) -> None:
    """Nor do separate streams of cells: a part of one cannot be shared."""
    for pool in (make_pool(exact=True), make_pool(memory=Memory("recurrent", trims=False))):
        assert pool.run(numbers(0, 50)) == 50
        assert pool.run(numbers(0, 50)) == 50
        assert pool.ledger.warm == 0
        pool.check()


def test_behind_a_window_only_a_whole_prefix_is_taken(make_pool: MakePool) -> None:
    """llama.cpp has given away cells in the middle of what was longer than its window."""
    pool = make_pool(memory=Memory("sliding window", trims=True, window=64))
    pool.run(numbers(0, 100))
    assert pool.run([*numbers(0, 90), 900]) == 91
    assert pool.run(numbers(0, 120)) == 20
    pool.run(numbers(3000, 60))
    assert pool.run([*numbers(3000, 50), 900]) == 1
    pool.check()


def test_a_warm_slot_whose_cells_are_wrong_is_given_up(pool: Pool) -> None:
    """The audit finds it, and no run starts from it."""
    pool.run(numbers(0, 50))
    (slot,) = pool.ledger.resident
    pool.model.disturb(slot.id, -3)
    (fault,) = pool.ledger.audit()
    assert fault.repaired
    assert "held 47 KV cells instead of 50" in fault.message
    assert pool.ledger.warm == 0
    assert pool.run(numbers(0, 50)) == 50
