"""Which run gets a slot next, and which one gives way: without a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import msgspec
from hypothesis import given, settings, strategies as st

from tests.fakes import run_message
from tests.lanes import examples
from worker_orcd.engine.prefixes import TokenArray
from worker_orcd.engine.run import Run
from worker_orcd.engine.scheduler import GROWTH_CELLS, Live, Scheduler, least_urgent
from worker_orcd.engine.slot import Leader, Slot
from worker_orcd.engine.urgency import may_preempt, order

IDS = count()


@dataclass(eq=False)
class InSlot:
    """A live run."""

    run: Run
    slot: Slot


@dataclass
class Pool:
    """So many cells, none of which is shared; runs whose namespace is `follows` had better wait."""

    cells: int = 10_000
    asked: list[int] = field(default_factory=list)

    def leader(self, _tokens: TokenArray, namespace: str | None) -> Leader | None:
        """The first run leads those."""
        return Leader(1, 1) if namespace == "follows" else None

    def leads(self, _leader: Leader) -> bool:
        """It goes on leading them."""
        return True

    def fits(self, tokens: TokenArray, _namespace: str | None, beside: Sequence[Slot], growth: int) -> bool:
        """By all tokens."""
        self.asked.append(growth)
        return len(tokens) + sum(len(slot.tokens) for slot in beside) + growth <= self.cells


def waiting(run: int, size: int = 10, **given: Any) -> Run:
    """A run of so many prompt tokens."""
    return msgspec.structs.replace(run_message(run, **given), prompt=(1,) * size)


def live(run: Run, generated: int = 0) -> InSlot:
    """The run in a slot."""
    return InSlot(run, Slot(next(IDS), run.number, None, [*run.prompt, *range(generated)]))


def of(
    scheduler: Scheduler, runs: Sequence[InSlot] = (), pool: Pool | None = None
) -> tuple[int, list[int]] | None:
    """Which run is next, and which ones of which one gives way."""
    found = scheduler.next(runs, pool or Pool())
    return None if found is None else (found[0].number, [other.run.number for other in found[1]])


def with_waiting(*runs: Run, sequences: int = 2) -> Scheduler:
    """These wait."""
    scheduler = Scheduler(sequences)
    for run in runs:
        scheduler.add(run)
    return scheduler


def test_the_first_in_order_is_next() -> None:
    """By order, then by run; each is taken once."""
    scheduler = with_waiting(waiting(3), waiting(1), waiting(2, order=-1.0), sequences=9)
    assert [of(scheduler) for _ in range(4)] == [(2, []), (1, []), (3, []), None]


def test_no_more_runs_get_slots_than_there_are() -> None:
    """However few cells they need."""
    scheduler = with_waiting(waiting(3))
    assert of(scheduler, [live(waiting(1)), live(waiting(2))]) is None
    assert scheduler.waiting == {3}
    assert of(scheduler, [live(waiting(1))]) == (3, [])


def test_a_run_gets_a_slot_when_its_tokens_and_the_growth_of_all_fit() -> None:
    """To the cell: 64 more for each, or what is left of its tokens."""
    scheduler, beside = with_waiting(waiting(2, 40, max_tokens=1000)), [live(waiting(1, 20, max_tokens=5), 2)]
    need = 40 + GROWTH_CELLS + 22 + 3
    assert of(scheduler, beside, Pool(need - 1)) is None
    assert of(scheduler, beside, Pool(need)) == (2, [])


def test_a_run_alone_always_gets_a_slot() -> None:
    """It fits its context, whatever growth is expected."""
    assert of(with_waiting(waiting(1, 40, max_tokens=1000)), [], Pool(41)) == (1, [])


def test_nobody_overtakes_a_run_that_does_not_fit() -> None:
    """A small one behind a large one waits, too, so the large one is not starved."""
    scheduler = with_waiting(waiting(2, 500), waiting(3, 1))
    assert of(scheduler, [live(waiting(1, 500))], Pool(600)) is None


def test_a_run_that_had_better_wait_for_another_holds_up_nobody() -> None:
    """It computes nothing twice; the next one gets the slot."""
    scheduler = with_waiting(waiting(2, cache="follows"), waiting(3))
    assert of(scheduler, [live(waiting(1))]) == (3, [])
    assert of(scheduler, [live(waiting(1))]) is None


def test_an_urgent_run_has_a_less_urgent_one_give_way_only_for_the_last_slot() -> None:
    """While one is free it takes that. What less urgent runs hold does not count against it."""
    urgent, less, as_urgent = waiting(5, order=-1.0), waiting(1, 600, priority=1), waiting(2, order=-2.0)
    assert of(with_waiting(urgent), [live(less)], Pool(300)) == (5, [])
    assert of(with_waiting(urgent), [live(less), live(as_urgent)], Pool(300)) == (5, [1])
    assert of(with_waiting(urgent, sequences=1), [live(as_urgent)]) is None


RUNS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 90), st.integers(-2, 2), st.integers(-30, 30)),
    min_size=1,
    max_size=15,
)


@given(runs=RUNS, sequences=st.integers(1, 4), chance=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=examples(200))
def test_all_runs_end_whatever_they_need(
    runs: list[tuple[int, int, int, int]], sequences: int, chance: Random
) -> None:
    """Runs come, grow, preempt each other and end: slots suffice, what is expected fits when a run begins, the most
    urgent is never preempted, and none is lost or served twice."""
    pool, scheduler, inside = Pool(160), Scheduler(sequences), dict[int, InSlot]()
    wanted = {
        number: waiting(number, size, max_tokens=most, priority=priority, order=float(placed))
        for number, (size, most, priority, placed) in enumerate(runs, 1)
    }
    arriving, ended = list(wanted.values()), list[int]()
    for _ in range(20_000):
        if arriving and (not inside or chance.random() < 0.3):
            scheduler.add(arriving.pop())
        while (found := scheduler.next(inside.values(), pool)) is not None:
            run, giving_way = found
            assert run.number not in inside
            if giving_way:
                preempt(scheduler, inside, giving_way)
            inside[run.number] = live(run, len(run.generated))
            assert len(inside) <= sequences
        while len(inside) > 1 and sum(len(it.slot.tokens) + 1 for it in inside.values()) > pool.cells:
            first = min(inside.values(), key=lambda it: order(it.run)).run.number
            preempt(scheduler, inside, list(inside.values()))
            assert first in inside
        for number, it in list(inside.items()):
            it.slot.tokens.append(0)
            if len(it.slot.tokens) - len(it.run.prompt) >= it.run.max_tokens:
                del inside[number]
                ended.append(number)
        if len(ended) == len(wanted):
            break
    assert sorted(ended) == sorted(wanted)


def preempt(scheduler: Scheduler, inside: dict[int, InSlot], candidates: Sequence[Live]) -> None:
    """As the loop does."""
    victim = inside.pop(least_urgent(candidates, {}).run.number)
    assert not any(may_preempt(victim.run, other.run) and other.run.number in inside for other in candidates)
    generated = tuple(victim.slot.tokens[len(victim.run.prompt) :])
    scheduler.add(msgspec.structs.replace(victim.run, generated=generated))
