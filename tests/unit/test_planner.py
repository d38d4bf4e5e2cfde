"""Steps are planned by predicted time (G1, G12): order, budgets, and how the estimate learns."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from tests.lanes import examples
from worker_orcd.engine import planner
from worker_orcd.engine.planner import CostEstimate, Pace, Pending, Plan, Share, plan_step


def decoding(key: int, context: int = 100) -> Pending:
    """The pending work of a sequence that waits for its next token."""
    return Pending(key, 1, context, decoding=True)


def reading(key: int, rows: int, context: int = 0) -> Pending:
    """A sequence with this many prompt tokens to compute."""
    return Pending(key, rows, context, decoding=False)


def knowing(decode_ms: float, row_ms: float, decode_rows: int = 1) -> CostEstimate:
    """An estimate that has learned these costs of a decode step and of a prefill row."""
    cost = CostEstimate()
    cost.learn(Plan((), decode_rows, 0, 0, 0.0), decode_ms)
    cost.learn(Plan((), 0, 100, 0, 0.0), row_ms * 100)
    return cost


PENDING = st.lists(
    st.tuples(st.booleans(), st.integers(1, 3000), st.integers(0, 8000)), min_size=1, max_size=24
).map(
    lambda requests: [
        Pending(key, 1 if decodes else rows, context, decoding=decodes)
        for key, (decodes, rows, context) in enumerate(requests)
    ]
)
COSTS = st.builds(knowing, st.floats(0.5, 200), st.floats(0.01, 50), st.integers(1, 16))


# What is in a step.


def test_every_decoding_sequence_has_its_one_row_before_any_prefill() -> None:
    """Whatever their position in the list."""
    plan = plan_step([reading(1, 50), decoding(2), reading(3, 50), decoding(4)], knowing(5, 1, 2))
    assert plan.shares[:2] == (Share(2, 1), Share(4, 1))
    assert plan.decode_rows == 2
    assert plan.shares[2].key == 1


def test_prefill_is_filled_in_the_order_given() -> None:
    """The oldest prompt first; the next gets what is left of the time."""
    cost = knowing(5, 1)
    plan = plan_step([decoding(1), reading(2, 12), reading(3, 100)], cost)
    assert plan.shares == (Share(1, 1), Share(2, 12), Share(3, 8))
    assert plan.predicted_ms == pytest.approx(25)


def test_a_mixed_step_lasts_25_ms_when_decoding_is_cheap() -> None:
    """A minimum: fewer rows would slow down prefill needlessly."""
    plan = plan_step([decoding(1), reading(2, 3000)], knowing(5, 1))
    assert planner.MIXED_MS == 25
    assert plan.prefill_rows == 20


def test_a_mixed_step_lasts_a_fixed_ratio_of_its_decode_part_when_that_is_expensive() -> None:
    """At most two and a half times: G12 allows a gap of three times the normal one."""
    plan = plan_step([decoding(n) for n in range(16)] + [reading(99, 3000)], knowing(60, 1, 16))
    assert 2 <= planner.MIXED_RATIO <= 2.5
    assert plan.predicted_ms == pytest.approx(60 * planner.MIXED_RATIO, abs=1)
    assert plan.prefill_rows == round(60 * planner.MIXED_RATIO - 60)


def test_a_prompt_continues_by_eight_rows_however_slow_decoding_is() -> None:
    """No prompt starves beside a full set of decoding sequences."""
    plan = plan_step([decoding(1), reading(2, 3000)], knowing(24, 100))
    assert plan.prefill_rows == 8


def test_the_eight_rows_are_those_of_the_step_not_of_one_prompt() -> None:
    """The last three rows of one prompt and five of the next."""
    plan = plan_step([decoding(1), reading(2, 3), reading(3, 3000)], knowing(24, 100))
    assert plan.shares == (Share(1, 1), Share(2, 3), Share(3, 5))


def test_a_step_of_prefill_only_lasts_as_long_as_an_arrival_may_wait() -> None:
    """A stop aborts it anyway. Only whole tiles fill it."""
    plan = plan_step([reading(1, 3000)], knowing(5, 1))
    assert plan.prefill_rows == planner.PREFILL_MS // 64 * 64
    assert planner.PREFILL_MS <= 500


def test_a_short_prompt_does_not_wait_until_a_long_one_is_read() -> None:
    """It gets up to half of a step; the long one, which came first, gets the rest."""
    plan = plan_step([reading(1, 3000), reading(2, 20)], knowing(5, 24))
    assert {share.key: share.rows for share in plan.shares} == {1: 10, 2: 10}
    plan = plan_step([reading(1, 3000), reading(2, 20)], knowing(5, 1))
    assert {share.key: share.rows for share in plan.shares} == {1: 428, 2: 20}


def test_a_short_prompt_makes_progress_beside_a_long_one_and_expensive_decoding() -> None:
    """Also if only the guaranteed eight rows are left: each gets half of them."""
    cost = CostEstimate()
    cost.learn(Plan((), 2, 0, 0, 0.0), 17.0)
    for rows in (16, 64):
        cost.learn(Plan((), 0, rows, 0, 0.0), rows * 3.0)
    two = [Pending(1, 1, 50, decoding=True), Pending(2, 1, 50, decoding=True)]
    long, short = Pending(3, 1492, 8, decoding=False), Pending(4, 40, 0, decoding=False)
    assert plan_step([*two, long, short], cost).shares[2:] == (Share(3, 4), Share(4, 4))
    assert plan_step([*two, long], cost).shares[2:] == (Share(3, 8),)


def test_a_step_of_prefill_only_is_short_where_it_cannot_be_aborted() -> None:
    """Then only the time budget keeps the bound of G1."""
    plan = plan_step([reading(1, 3000)], knowing(5, 1), abortable=False)
    assert plan.predicted_ms == pytest.approx(25)


def test_a_step_of_a_model_with_few_layers_is_shorter() -> None:
    """An abort waits for one graph node: behind many cells that is a layer's share of the step."""
    plan = plan_step([reading(1, 3000, 5000)], knowing(5, 1), layers=6)
    assert plan.predicted_ms <= 6 * planner.NODE_MS * planner.STRETCH[2]


def tiles(rows: int) -> int:
    """Number of tiles that attention computes for a step of this many rows, the last one possibly in part."""
    return -(-rows // planner.TILE_ROWS)


@given(rows=st.integers(1, 4000), context=st.integers(0, 6000), row_ms=st.floats(0.05, 3.5))
@settings(deadline=None, max_examples=examples(150))
def test_no_tile_is_computed_in_part_but_the_last_of_a_prompt(rows: int, context: int, row_ms: float) -> None:
    """A prompt that is computed alone takes no more tiles in its steps than it would in one, and only the last step may
    have too few rows for the tiled path. So steps that are short enough for an arrival cost no throughput."""
    cost, left, computed = knowing(5, row_ms), rows, 0
    while left:
        plan = plan_step([reading(1, left, context + rows - left)], cost)
        assert plan.prefill_rows >= min(left, planner.TILE_ROWS)
        left -= plan.prefill_rows
        computed += tiles(plan.prefill_rows) if plan.prefill_rows >= planner.TILE_ROWS else 0
    assert computed <= tiles(rows)


@pytest.mark.parametrize(
    ("attention_ms", "rows", "expected"),
    [
        (3.5, 193, [128, 64, 1]),
        (3.5, 145, [128, 17]),
        (3.5, 170, [64, 106]),
        (0.1, 193, [193]),
        (0.1, 450, [128, 128, 194]),
    ],
)
def test_the_last_rows_go_with_a_whole_tile_unless_its_attention_costs_more(
    attention_ms: float, rows: int, expected: list[int]
) -> None:
    """One row more makes attention compute 64 more; a small step of its own costs twice as much per row."""
    cost = knowing(15, 4 - 0.1 * attention_ms)
    for several, ms in ((63, 2 * (4 + attention_ms)), (64, 4 + attention_ms)):
        for _ in range(99):
            cost.learn(Plan((), 0, several, 1500, 0.0), several * ms)
    steps, left = [], rows
    while left:
        steps.append(plan_step([reading(1, left, 1500)], cost).prefill_rows)
        left -= steps[-1]
    assert steps == expected


@pytest.mark.parametrize(
    ("row_ms", "attention_ms", "rows"),
    [(7.5, 0, 128), (7.5, 3.9, 128), (7.5, 4.1, 64), (9, 7.9, 64), (9, 8.1, 27), (12, 0, 64)],
)
def test_a_step_is_stretched_to_two_tiles_or_one_if_attention_is_short_enough_to_abort(
    row_ms: float, attention_ms: float, rows: int
) -> None:
    """At most three times its limit, and at most 17 ms for the attention of one of 30 layers."""
    assert plan_step([reading(1, 3000, 2500)], with_attention(row_ms, attention_ms)).prefill_rows == rows


@pytest.mark.parametrize(
    ("pending", "row_ms", "attention_ms", "rows"),
    [
        ([reading(1, 262, 2500)], 7.5, 1.5, 256),
        ([reading(1, 319, 2500)], 7.5, 1.5, 192),
        ([reading(1, 320, 2500)], 7.5, 1.5, 128),
        ([reading(1, 262, 2500), reading(2, 2000, 2500)], 7.5, 1.5, 128),
        ([reading(1, 262, 2500)], 7.5, 2.1, 128),
        ([reading(1, 262, 2500)], 7.9, 1.5, 128),
    ],
)
def test_a_step_of_four_tiles_completes_the_only_prompt(
    pending: list[Pending], row_ms: float, attention_ms: float, rows: int
) -> None:
    """As a conversation's next turn is. At most four times its limit, and 17 ms for one layer's attention."""
    assert plan_step(pending, with_attention(row_ms, attention_ms)).prefill_rows == rows


def with_attention(row_ms: float, attention_ms: float) -> CostEstimate:
    """A machine whose rows take so long after 2,500 cells, a part of it for attention."""
    cost = knowing(5, row_ms - attention_ms)
    for tiled, ms in ((63, 18.0), (64, row_ms)):
        for _ in range(99):
            cost.learn(Plan((), 0, tiled, 2500, 0.0), tiled * ms)
    return cost


def test_the_rest_of_a_prompt_counts_as_the_tiles_that_its_attention_computes() -> None:
    """100 rows take as long as 128: too long for an abort here, though 100 times a row's attention would be in time."""
    cost = knowing(5, 3)
    for tiled, ms in ((63, 18.0), (64, 7.5)):
        for _ in range(99):
            cost.learn(Plan((), 0, tiled, 2500, 0.0), tiled * ms)
    assert 100 * 4.5 / 30 < planner.NODE_MS < 128 * 4.5 / 30
    assert plan_step([reading(1, 100, 2500)], cost).prefill_rows == 64


def test_small_steps_of_long_ago_do_not_make_tiles_look_cheap() -> None:
    """Prompts in whole tiles measure no small steps. Where no step can be aborted, steps stay short nevertheless."""
    cost = CostEstimate()
    for rows in (8, 64):
        cost.learn(Plan((), 0, rows, 0, 0.0), rows * 0.1)
    for _ in range(20):
        plan = plan_step([reading(1, 3000)], cost, abortable=False)
        cost.learn(plan, plan.prefill_rows * 1.0)
    assert plan_step([reading(1, 3000)], cost, abortable=False).prefill_rows <= 40


def test_one_slow_tile_does_not_make_steps_small_for_long() -> None:
    """The smaller steps show what a row costs at most, and a tile is tried again."""
    cost = knowing(5, 15)
    cost.learn(Plan((), 0, 64, 0, 0.0), 64 * 90)
    small = plan_step([reading(1, 3000)], cost)
    assert small.prefill_rows < 64
    cost.learn(small, small.prefill_rows * 12)
    assert plan_step([reading(1, 3000)], cost).prefill_rows == 64


@pytest.mark.parametrize("pace", [Pace.SHORT, Pace.PROTECTED])
def test_a_step_soon_after_an_aborted_one_is_short_also_beside_decoding(pace: Pace) -> None:
    """The next stop is likely to come soon."""
    cost = knowing(5, 1)
    assert plan_step([reading(1, 3000)], cost, pace=pace).predicted_ms == pytest.approx(20)
    assert plan_step([decoding(1), reading(2, 3000)], cost, pace=pace).predicted_ms == pytest.approx(20)
    assert plan_step([reading(1, 3000)], knowing(5, 90), pace=pace).prefill_rows == 1


def test_a_protected_step_takes_what_fits_and_one_row_whatever_it_costs() -> None:
    """Decode rows first; no prefill beside them when they take all of the time."""
    four = [decoding(n) for n in range(4)]
    cost = knowing(20, 1)
    assert plan_step(four, cost, pace=Pace.PROTECTED).shares == (Share(0, 1), Share(1, 1))
    assert plan_step(four, cost, pace=Pace.SHORT).decode_rows == 4
    assert plan_step(four, knowing(200, 1), pace=Pace.PROTECTED).shares == (Share(0, 1),)
    plan = plan_step([*four, reading(9, 3000)], cost, pace=Pace.PROTECTED)
    assert (plan.decode_rows, plan.prefill_rows) == (2, 0)


def test_the_oldest_prompt_gets_half_of_each_step_however_many_short_ones_come() -> None:
    """Ten fresh prompts of 30 tokens in each step: 3,000 tokens take at most twice as many steps as alone, and one."""
    for decoders, cost in ((0, knowing(5, 1)), (2, knowing(12, 1)), (1, knowing(40, 10))):
        busy = [decoding(n) for n in range(decoders)]
        alone = beside = 0
        for others in (0, 10):
            left, steps = 3000, 0
            while left > 0:
                young = [reading(100 + n, 30) for n in range(others)]
                plan = plan_step([*busy, reading(99, left, 3000 - left), *young], cost)
                left -= {share.key: share.rows for share in plan.shares}[99]
                steps += 1
            alone, beside = beside, steps
        assert alone < beside <= 2 * alone + 1


def test_a_short_prompt_is_read_whole() -> None:
    """No more rows than it has."""
    plan = plan_step([reading(1, 5)], knowing(5, 1))
    assert (plan.shares, plan.prefill_rows, plan.decode_rows) == ((Share(1, 5),), 5, 0)


def test_the_context_that_the_estimate_learns_from_is_the_deepest_of_the_prefill() -> None:
    """Rows behind many cells are the expensive ones."""
    plan = plan_step([reading(1, 2, 100), reading(2, 2, 5000), decoding(3, 9000)], knowing(5, 1))
    assert plan.prefill_context == 5000


def test_no_pending_work_is_an_empty_step() -> None:
    """It is predicted to take no time."""
    assert plan_step([], CostEstimate()) == Plan((), 0, 0, 0, 0.0)


@given(PENDING, COSTS)
@settings(deadline=None, max_examples=examples(150))
def test_the_oldest_prompt_never_gets_less_than_half(pending: list[Pending], cost: CostEstimate) -> None:
    """Unless it needs less: half of the step's prefill time, or half of the rows if the batch is full."""
    plan = plan_step(pending, cost)
    readers = [one for one in pending if not one.decoding]
    got = {share.key: share.rows for share in plan.shares}
    if not readers or got[readers[0].key] == readers[0].rows:
        return
    oldest = readers[0]
    tiled = plan.prefill_rows >= planner.TILE_ROWS
    ms = {one.key: got.get(one.key, 0) * cost.prefill_row_ms(one.context, tiled=tiled) for one in readers}
    row_ms = cost.prefill_row_ms(oldest.context, tiled=tiled)
    assert got[oldest.key] >= plan.prefill_rows / 2 or ms[oldest.key] >= sum(ms.values()) / 2 - row_ms


@given(PENDING, COSTS, st.sampled_from([Pace.FULL, Pace.SHORT]), st.booleans())
@settings(deadline=None, max_examples=examples(150))
def test_no_step_breaks_the_rules(
    pending: list[Pending], cost: CostEstimate, pace: Pace, abortable: bool
) -> None:
    """For any pending work and any costs: completeness, order, size and time."""
    plan = plan_step(pending, cost, pace=pace, abortable=abortable)
    least = 8 if pace is Pace.FULL else 1
    wants = {one.key: one for one in pending}
    keys = [share.key for share in plan.shares]
    assert len(keys) == len(set(keys))
    assert all(1 <= share.rows <= wants[share.key].rows for share in plan.shares)
    # Decode first and complete.
    decoders = [one.key for one in pending if one.decoding]
    assert keys[: len(decoders)] == decoders
    assert plan.decode_rows == len(decoders)
    # Prefill: the oldest makes progress, the rest goes to the prompts that need least. A prompt that
    # does not get all of its rows gets what fits; the remaining time may be enough for cheaper rows only.
    readers = [one for one in pending if not one.decoding]
    got = {share.key: share.rows for share in plan.shares[len(decoders) :]}
    assert set(got) <= {one.key for one in readers}
    if readers and plan.decode_rows <= 512 - 8:
        assert got[readers[0].key] >= min(-(-least // 2) if len(readers) > 1 else least, readers[0].rows)
    by_need = sorted(readers[1:], key=lambda one: one.rows)
    tiled = plan.prefill_rows >= planner.TILE_ROWS
    row_ms = [cost.prefill_row_ms(one.context, tiled=tiled) for one in by_need]
    for n, one in enumerate(by_need):
        if got.get(one.key, 0) < one.rows:
            later = zip(by_need[n + 1 :], row_ms[n + 1 :], strict=True)
            assert all(ms <= row_ms[n] for other, ms in later if other.key in got)
    assert plan.prefill_rows == sum(got.values())
    # Size.
    assert sum(share.rows for share in plan.shares) <= 512
    assert plan.prefill_rows >= min(least, sum(one.rows for one in readers))
    # Time: beyond the budget only by what the eight rows need.
    decode_ms = cost.decode_ms(len(decoders))
    alone = planner.PREFILL_MS if abortable else 25
    budget = max(25, planner.MIXED_RATIO * decode_ms) if decoders else alone
    budget = budget if pace is Pace.FULL else min(budget, 20)
    if budget == planner.PREFILL_MS:
        budget *= planner.STRETCH[4 if len(pending) == 1 else 2]
    if plan.prefill_rows > least:
        assert plan.predicted_ms <= budget + 1e-6
    assert plan.predicted_ms >= decode_ms


@given(PENDING, st.floats(0.5, 100), st.floats(0.01, 20), st.floats(1.0, 10.0))
@settings(deadline=None)
def test_more_expensive_rows_never_make_a_step_larger(
    pending: list[Pending], decode_ms: float, row_ms: float, factor: float
) -> None:
    """On a machine with slower prefill, a step has no more rows."""
    cheap = plan_step(pending, knowing(decode_ms, row_ms))
    costly = plan_step(pending, knowing(decode_ms, row_ms * factor))
    assert costly.prefill_rows <= cheap.prefill_rows
    assert costly.decode_rows == cheap.decode_rows


# What rows cost.


def test_an_unknown_machine_is_taken_to_be_slow() -> None:
    """The very first step is short, and nothing is divided by zero."""
    cost = CostEstimate()
    assert cost.decode_ms(0) == 0
    assert cost.decode_ms(3) == 24
    assert cost.prefill_row_ms(0, tiled=True) == 8
    assert plan_step([reading(1, 3000)], cost).prefill_rows == 2 * planner.TILE_ROWS


def test_a_number_of_rows_never_seen_is_taken_from_its_neighbours_on_the_slow_side() -> None:
    """In proportion to a smaller one, but no more than a larger one took."""
    cost = knowing(10, 1, decode_rows=2)
    assert cost.decode_ms(2) == 10
    assert cost.decode_ms(4) == 20
    assert cost.decode_ms(1) == 10
    cost.learn(Plan((), 8, 0, 0, 0.0), 16)
    assert cost.decode_ms(4) == 16
    assert cost.decode_ms(16) == 32


def test_rows_of_a_whole_tile_are_known_apart_from_fewer() -> None:
    """They cost less on ggml's CPU kernels; once both kinds were measured, neither changes the other's estimate."""
    cost = CostEstimate()
    cost.learn(Plan((), 0, 16, 0, 0.0), 160)
    assert cost.prefill_row_ms(0, tiled=True) == 10
    cost.learn(Plan((), 0, 64, 0, 0.0), 320)
    assert cost.prefill_row_ms(0, tiled=True) == 5
    assert cost.prefill_row_ms(0, tiled=False) == 10


def test_a_slow_machine_reads_whole_tiles_while_they_are_no_longer_than_a_stop_can_bear() -> None:
    """500 ms would do for 19 rows at up to twice the price; a tile that takes up to 1,500 ms is read."""
    cost = CostEstimate()
    cost.learn(Plan((), 0, 16, 0, 0.0), 16 * 26)
    cost.learn(Plan((), 0, 64, 0, 0.0), 64 * 12)
    assert plan_step([reading(1, 3000)], cost).prefill_rows == 64
    assert plan_step([reading(1, 40)], cost).prefill_rows == 19
    assert plan_step([reading(1, 3000)], cost, abortable=False).prefill_rows == 8
    for _ in range(50):
        cost.learn(Plan((), 0, 64, 0, 0.0), 64 * 24)
    assert plan_step([reading(1, 3000)], cost).prefill_rows == 19


def test_an_aborted_step_that_took_longer_than_predicted_makes_everything_more_expensive_at_once() -> None:
    """It would have taken even longer. A step aborted within its predicted time changes nothing."""
    cost = knowing(10, 1)
    plan = plan_step([decoding(1)], cost)
    cost.aborted(plan, 9)
    cost.aborted(plan, 25)
    assert cost.decode_ms(1) == 10
    cost.aborted(plan, 120)
    assert cost.decode_ms(1) == pytest.approx(100)
    assert cost.prefill_row_ms(0, tiled=True) == pytest.approx(10)
    for _ in range(12):
        cost.learn(plan_step([decoding(1)], cost), 10)
    assert cost.decode_ms(1) == pytest.approx(10, rel=0.05)
    assert cost.slowdown < 1.05


def test_a_machine_that_stays_slow_is_learned_and_no_longer_counts_as_slowed_down() -> None:
    """The prediction stays right while the change moves from the factor into the cost of rows."""
    cost = knowing(10, 1)
    cost.aborted(plan_step([decoding(1)], cost), 120)
    for _ in range(40):
        plan = plan_step([decoding(1)], cost)
        cost.learn(plan, 100)
    assert cost.decode_ms(1) == pytest.approx(100, rel=0.1)
    assert cost.slowdown < 1.1


def test_a_prompts_last_few_rows_teach_nothing() -> None:
    """They carry the fixed cost of a whole step."""
    cost = knowing(10, 1)
    cost.learn(Plan((), 0, 7, 0, 0.0), 7000)
    assert cost.prefill_row_ms(0, tiled=False) == 1


def test_a_context_deeper_than_any_seen_is_estimated_as_more_expensive() -> None:
    """Attention grows with it; a shallower one is taken as the nearest seen."""
    cost = knowing(10, 1)
    costs = [cost.prefill_row_ms(context, tiled=True) for context in (0, 511, 512, 2048, 8192)]
    assert costs[0] == costs[1] == 1
    assert costs == sorted(costs)
    assert costs[-1] > 2


def test_a_single_slow_step_moves_the_estimate_by_a_fifth() -> None:
    """It may be due to another process."""
    cost = knowing(10, 1)
    cost.learn(Plan((), 1, 0, 0, 0.0), 110)
    assert cost.decode_ms(1) == pytest.approx(30)


def test_a_mixed_step_teaches_about_prefill_only() -> None:
    """The cost of decode rows is measured in steps without prefill."""
    cost = knowing(10, 1)
    cost.learn(Plan((), 1, 100, 0, 0.0), 310)
    assert cost.decode_ms(1) == 10
    assert cost.prefill_row_ms(0, tiled=True) == pytest.approx(1 + 0.2 * (3 - 1))


def test_decoding_that_has_become_slow_does_not_hold_up_a_long_prompt_for_ever() -> None:
    """Some steps decode only, which measures it; with 8 rows per step the prompt would take 500 steps."""
    cost, took = knowing(2, 1), machine(0.0, 100.0, 0.05, 0.0)
    steps = read_a_prompt(cost, took, 4000, 2)
    assert len(steps) < 60
    assert cost.decode_ms(2) == pytest.approx(200, rel=0.5)


def test_a_mixed_step_that_was_faster_than_its_decode_part_does_not_make_prefill_free() -> None:
    """Noise never makes the estimate zero, which would plan endless steps."""
    cost = knowing(50, 1)
    for _ in range(100):
        cost.learn(Plan((), 1, 10, 0, 0.0), 5)
    assert cost.prefill_row_ms(0, tiled=False) == pytest.approx(0.05, rel=0.1)


Machine = Callable[[Plan], float]


def machine(overhead_ms: float, decode_ms: float, row_ms: float, per_cell_ms: float) -> Machine:
    """A machine: a fixed cost for a step, one for each row, and for prefill rows one for each cell behind them."""

    def took_ms(plan: Plan) -> float:
        prefill = plan.prefill_rows * (row_ms + per_cell_ms * plan.prefill_context)
        return overhead_ms + plan.decode_rows * decode_ms + prefill

    return took_ms


def read_a_prompt(cost: CostEstimate, took: Machine, rows: int, decoders: int) -> list[tuple[Plan, float]]:
    """Prefill a prompt beside this many decoding sequences. Returns each step and its duration."""
    steps = []
    done = 0
    while done < rows:
        pending = [decoding(n) for n in range(decoders)] + [reading(99, rows - done, done)]
        plan = plan_step(pending, cost)
        steps.append((plan, took(plan)))
        cost.learn(plan, steps[-1][1])
        done += plan.prefill_rows
    return steps


@given(
    overhead_ms=st.floats(0, 6),
    decode_ms=st.floats(0.5, 8),
    row_ms=st.floats(0.3, 4),
    decoders=st.integers(0, 8),
)
@settings(deadline=None, max_examples=examples(20))
def test_the_prediction_comes_to_track_the_machine(
    overhead_ms: float, decode_ms: float, row_ms: float, decoders: int
) -> None:
    """After a few long prompts, full steps take as long as was predicted, to a quarter, fixed costs included.

    But for the last ones: a short last chunk pays the whole fixed cost, so there the estimate is on the slow side.
    """
    cost, took = CostEstimate(), machine(overhead_ms, decode_ms, row_ms, 0.0)
    if decoders:
        for _ in range(30):
            alone = plan_step([decoding(n) for n in range(decoders)], cost)
            cost.learn(alone, took(alone))
    for _ in range(4):
        read_a_prompt(cost, took, 3000, decoders)
    for plan, ms in read_a_prompt(cost, took, 3000, decoders):
        if plan.prefill_rows > 8:
            assert ms <= plan.predicted_ms * 1.25
            if plan.prefill_context < 2048:
                assert ms >= plan.predicted_ms * 0.75


def test_the_prediction_follows_a_cost_that_grows_with_the_context() -> None:
    """A row behind 6,000 cells costs seven times one behind none here; steps last about the same."""
    cost, took = CostEstimate(), machine(5.0, 4.0, 2.0, 0.002)
    for _ in range(3):
        read_a_prompt(cost, took, 6000, 0)
    steps = read_a_prompt(cost, took, 6000, 0)[:-1]
    rows = [plan.prefill_rows for plan, _ in steps]
    assert rows[0] > 3 * rows[-1]
    assert all(planner.PREFILL_MS * 0.5 < ms < planner.PREFILL_MS * planner.STRETCH[2] for _, ms in steps)


def test_streams_beside_a_long_prompt_wait_at_most_three_times_as_long() -> None:
    """G12 on a machine like the one measured: 8 ms for one row, 57 ms for sixteen, 3 ms for a prefill row."""
    took = machine(4.7, 3.3, 3.0, 0.0)
    for decoders in (4, 8, 16):
        cost = CostEstimate()
        alone = plan_step([decoding(n) for n in range(decoders)], cost)
        normal = took(alone)
        for _ in range(30):
            cost.learn(alone, normal)
        read_a_prompt(cost, took, 2000, decoders)
        gaps = [ms for _, ms in read_a_prompt(cost, took, 2000, decoders)]
        assert max(gaps) <= max(3 * normal, 30)


def test_short_last_chunks_never_make_full_steps_too_long() -> None:
    """A chunk of one row has the whole fixed cost, so the estimate errs on the slow side: steps get shorter."""
    cost, took = CostEstimate(), machine(6.0, 4.0, 2.0, 0.0)
    for _ in range(20):
        read_a_prompt(cost, took, 1, 0)
        for plan, ms in read_a_prompt(cost, took, 700, 0):
            assert ms <= max(planner.PREFILL_MS * 1.15, plan.predicted_ms * 1.15) or plan.prefill_rows <= 8


# A starved machine.


def starved(step_ms: float, row_ms: float) -> CostEstimate:
    """A machine on which each step takes so long whatever is in it, and each row a little more."""
    cost = CostEstimate()
    for rows in (8, 64):
        cost.learn(Plan((), 0, rows, 0, 0.0), step_ms + rows * row_ms)
    return cost


@pytest.mark.parametrize("streams", [0, 1])
def test_where_even_few_rows_take_too_long_a_step_has_a_whole_tile(streams: int) -> None:
    """Threads that wait for a core at each barrier make a step of 8 rows as long as one of 64: 8 rows a step would take
    eight times as long for a prompt, and no larger step would ever show that it is not more expensive."""
    cost = starved(1200, 2)
    cost.learn(Plan((), 1, 0, 0, 0.0), 100)
    plan = plan_step([*map(decoding, range(streams)), reading(9, 2000)], cost)
    assert plan.prefill_rows == 64


def test_where_rows_are_what_takes_long_a_step_has_few() -> None:
    """On a slow machine that is not starved."""
    cost = starved(10, 100)
    cost.learn(Plan((), 1, 0, 0, 0.0), 100)
    assert plan_step([decoding(1), reading(9, 2000)], cost).prefill_rows == 8


def test_a_step_soon_after_an_aborted_one_stays_short() -> None:
    """So that it ends before the next stop."""
    assert plan_step([reading(9, 2000)], starved(1200, 2), pace=Pace.SHORT).prefill_rows < 8


def test_a_busy_moment_is_not_taken_for_expensive_attention() -> None:
    """Then steps behind many cells would shrink to one tile, whose rows cost more, and stay there."""
    cost = knowing(5, 5)
    for _ in range(9):
        cost.learn(Plan((), 0, 128, 0, 0.0), 128 * 5)
    cost.learn(Plan((), 0, 128, 1500, 0.0), 128 * 8)
    for _ in range(9):
        cost.learn(Plan((), 0, 128, 1500, 0.0), 128 * 11)
    assert cost.attention_row_ms(1500) == pytest.approx(3, abs=0.7)
    assert plan_step([reading(1, 3000, 1500)], cost).prefill_rows == 128
    for _ in range(200):
        cost.learn(Plan((), 0, 128, 1500, 0.0), 128 * 11)
    assert cost.attention_row_ms(1500) == pytest.approx(6, abs=0.2)
