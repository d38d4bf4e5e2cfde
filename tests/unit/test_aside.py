"""The engine's loop, turned by hand: prompts that are computed in the side pool, beside streams."""

import itertools

import pytest

from tests.fakes import HandLoop, MakeLoop, run_message
from tests.hand_side import HandSide
from tests.loop_runs import alone, in_decode
from worker_orcd.engine.model import Outcome
from worker_orcd.engine.planner import MIXED_RATIO
from worker_orcd.protocol.messages import Ping, Stop
from worker_orcd.sampling import SamplingParams
from worker_orcd.supervisor.prefix_memory import prefix_memory

PROMPT = "x" * 600


def beside_streams(make_loop: MakeLoop, streams: int = 2, **given: object) -> tuple[HandLoop, HandSide]:
    """A loop with so many runs that decode: 1, 2 and so on."""
    loop = make_loop(**{"side_cells": 2000, **given})
    assert loop.model.side is not None
    for run in range(1, streams + 1):
        loop.post(run_message(run, max_tokens=400))
    in_decode(loop, *range(1, streams + 1))
    loop.model.steps.clear()
    return loop, loop.model.side


def until_aside(loop: HandLoop, side: HandSide) -> None:
    """Turn until a step is in progress there."""
    for _ in range(20):
        if side.in_progress:
            return
        loop.turn()
    raise AssertionError("no step is in progress")


def test_all_rows_of_a_prompt_but_the_last_are_computed_beside_the_streams(make_loop: MakeLoop) -> None:
    """Every step of the streams has their rows, and no more until the prompt's last one."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3))
    in_decode(loop, 9)
    rows = len(run_message(9, PROMPT).prompt)
    assert sum(len(batch.tokens) for batch in side.batches) == rows - 1
    assert max(len(step.batch.tokens) for step in loop.model.steps) == 3
    assert all(step.rows_of(0) == step.rows_of(1) == 1 for step in loop.model.steps)
    assert side.sequences == frozenset()
    loop.finish()
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT, max_tokens=3)
    assert loop.faults == []


def test_every_stream_gets_a_token_in_each_limit_of_a_mixed_step(make_loop: MakeLoop) -> None:
    """A slice and a step of the streams together last as long as a mixed step may (G12)."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3))
    until_aside(loop, side)
    times = []
    while side.in_progress:
        loop.turn()
        times.append(loop.clock.now)
    decode_ms = 2 * loop.model.decode_ms
    gaps = [(b - a) * 1000 for a, b in itertools.pairwise(times)]
    assert len(gaps) > 10
    assert max(gaps) <= max(25.0, MIXED_RATIO * decode_ms) + 1
    assert sorted(gaps)[len(gaps) // 2] > 1.5 * decode_ms, "the prompt gets its share"


def test_a_stop_of_another_run_pauses_a_step_and_loses_none_of_it(make_loop: MakeLoop) -> None:
    """It is confirmed in the next turn, and the prompt's rows are computed once."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3))
    until_aside(loop, side)
    side.during_slice = loop.byte.set
    loop.turn()
    side.during_slice = lambda: None
    loop.post(Stop(1))
    loop.turn()
    assert [stop.run for stop in loop.stopped] == [1]
    in_decode(loop, 9)
    assert side.aborted == 0
    assert sum(len(batch.tokens) for batch in side.batches) == len(run_message(9, PROMPT).prompt) - 1


def test_a_stop_of_the_prompt_s_run_ends_the_step_and_keeps_what_was_computed(make_loop: MakeLoop) -> None:
    """What was done before that step is warm, and the next run begins there."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3, cache="a"))
    while not any(progress.run == 9 for step in loop.steps for progress in step.progress):
        loop.turn()
    until_aside(loop, side)
    done = max(
        progress.prompt_processed for step in loop.steps for progress in step.progress if progress.run == 9
    )
    loop.post(Stop(9))
    loop.turn()
    (stopped,) = loop.stopped
    assert (stopped.cells_before, stopped.cells_after, stopped.cells_warm) == (done, 0, done)
    assert (side.aborted, side.sequences) == (1, frozenset())
    loop.post(run_message(10, PROMPT, max_tokens=3, cache="a", sampling=SamplingParams(seed=9)))
    loop.finish()
    cached = max(progress.cached for step in loop.steps for progress in step.progress if progress.run == 10)
    assert cached == done
    assert loop.tokens(10) == alone(make_loop, 9, PROMPT, max_tokens=3)
    assert loop.faults == []


def test_a_run_that_the_front_does_not_know_is_freed_from_there(make_loop: MakeLoop) -> None:
    """As everywhere else."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT))
    until_aside(loop, side)
    loop.post(Ping((1, 2)))
    loop.turn()
    assert [(fault.run, fault.repaired) for fault in loop.faults] == [(9, True)]
    assert side.sequences == side.in_progress == frozenset()


def test_runs_that_wait_for_a_prefix_share_it_after_the_step_that_completes_it(make_loop: MakeLoop) -> None:
    """They do not wait for the rest of the prompt, and no token is computed twice."""
    loop, side = beside_streams(make_loop)
    common = "c" * 300
    loop.post(run_message(8, common + "d" * 1200, cache="a"))
    until_aside(loop, side)
    loop.post(run_message(9, common + "e" * 50, cache="a"))
    in_decode(loop, 9)
    assert not loop.tokens(8)
    loop.finish()
    cached = max(progress.cached for step in loop.steps for progress in step.progress if progress.run == 9)
    assert cached >= 300
    assert loop.tokens(8) == alone(make_loop, 8, common + "d" * 1200)
    assert loop.tokens(9) == alone(make_loop, 9, common + "e" * 50)


def test_without_streams_a_prompt_is_moved_back(make_loop: MakeLoop) -> None:
    """After the step in progress; then it is computed like any other that is alone."""
    loop, side = beside_streams(make_loop, streams=1)
    loop.post(run_message(9, "x" * 1500, max_tokens=3))
    until_aside(loop, side)
    loop.post(Stop(1))
    loop.finish()
    assert side.sequences == frozenset()
    assert max(len(step.batch.tokens) for step in loop.model.steps) > 100
    assert loop.tokens(9) == alone(make_loop, 9, "x" * 1500, max_tokens=3)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.NO_ROOM, Outcome.NO_MEMORY])
def test_after_a_step_that_failed_there_prompts_are_computed_in_the_streams_steps(
    make_loop: MakeLoop, outcome: Outcome
) -> None:
    """Where a failure has an error, if it happens again."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3))
    until_aside(loop, side)
    side.next_outcome = outcome
    in_decode(loop, 9)
    assert side.sequences == frozenset()
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT, max_tokens=3)[: len(loop.tokens(9))]
    loop.post(run_message(10, PROMPT, max_tokens=3))
    steps = len(side.batches)
    in_decode(loop, 10)
    assert len(side.batches) == steps


def test_a_step_that_an_overdue_stop_aborts_is_computed_again(make_loop: MakeLoop) -> None:
    """In shorter steps, so that it comes to an end."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3))
    until_aside(loop, side)
    side.next_outcome = Outcome.ABORTED
    in_decode(loop, 9)
    assert len(side.batches[1].tokens) < len(side.batches[0].tokens)
    loop.finish()
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT, max_tokens=3)


def test_a_prompt_that_does_not_fit_is_computed_in_the_streams_steps(make_loop: MakeLoop) -> None:
    """Counting what other prompts there will need."""
    loop, side = beside_streams(make_loop, side_cells=1000)
    loop.post(run_message(8, "y" * 600), run_message(9, PROMPT))
    until_aside(loop, side)
    assert len(side.sequences) == 1
    loop.finish()
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT)
    assert loop.tokens(8) == alone(make_loop, 8, "y" * 600)


def test_while_moving_is_prepared_a_prompt_stays_where_it_is(make_loop: MakeLoop) -> None:
    """And is moved with what was computed of it until then."""
    loop, side = beside_streams(make_loop)
    side.prepared = False
    loop.post(run_message(9, PROMPT, max_tokens=3))
    loop.turn(3)
    assert side.sequences == frozenset()
    side.prepared = True
    until_aside(loop, side)
    loop.finish()
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT, max_tokens=3)


def test_a_sequence_that_cannot_be_moved_back_is_computed_again(make_loop: MakeLoop) -> None:
    """Rather than never."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3))
    until_aside(loop, side)
    side.moves_fail = True
    in_decode(loop, 9)
    loop.finish()
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT, max_tokens=3)
    assert loop.faults == []


def test_prompts_whose_rows_are_needed_stay_with_the_streams(make_loop: MakeLoop) -> None:
    """Log probabilities of a prompt are read from the step that computes it."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, prompt_logprobs=1))
    in_decode(loop, 9)
    assert side.slices == 0


def test_a_prompt_aside_is_saved_as_it_grows(make_loop: MakeLoop) -> None:
    """Between its steps: an engine that dies loses no more than elsewhere."""
    store = prefix_memory(1)
    loop, side = beside_streams(make_loop, store=store)
    loop.post(run_message(9, "x" * 1500, cache="a"))
    saved = set()
    while not loop.tokens(9):
        loop.turn()
        assert loop.store is not None
        if side.sequences:
            saved.add(loop.store.used)
    assert len(saved) > 2


def test_a_prompt_aside_is_preempted_like_any_other(make_loop: MakeLoop) -> None:
    """The cells of its rows in progress are kept free for it; a more urgent run gets its slot."""
    loop, side = beside_streams(make_loop, streams=3)
    loop.post(run_message(9, PROMPT, priority=5, order=50.0, cache="a"))
    until_aside(loop, side)
    loop.post(run_message(10, "z" * 30, priority=0, order=0.0))
    in_decode(loop, 10)
    assert any(9 in step.preempted for step in loop.steps)
    loop.finish()
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT)
    assert loop.faults == []


def test_an_urgent_run_starts_from_what_a_run_that_it_preempts_has_computed_there(
    make_loop: MakeLoop,
) -> None:
    """In the turn in which that becomes warm, its cells are still aside: they are moved back first."""
    loop, side = beside_streams(make_loop, streams=3)
    loop.post(run_message(9, "x" * 1500, priority=5, order=50.0, cache="a"))
    computed_of(loop, 9, 200)
    until_aside(loop, side)
    loop.post(run_message(10, "x" * 60 + "z" * 30, priority=0, order=0.0, cache="a"))
    in_decode(loop, 10)
    assert cached_of(loop, 10) >= 60
    loop.finish()
    assert loop.tokens(10) == alone(make_loop, 10, "x" * 60 + "z" * 30)
    assert loop.faults == []


@pytest.mark.parametrize("full", [False, True])
def test_a_run_that_comes_later_shares_the_prefix_of_a_prompt_aside(
    make_loop: MakeLoop, *, full: bool
) -> None:
    """Whether it finds a slot at once or, in a full engine, only when a stream has ended."""
    loop, _ = beside_streams(make_loop, streams=3 if full else 2)
    common = "c" * 300
    loop.post(run_message(8, common + "d" * 1600, cache="a"))
    computed_of(loop, 8, 0 if full else 500)
    loop.post(run_message(9, common + "e" * 50, cache="a"))
    if full:
        computed_of(loop, 8, 500)
        loop.turn(3)
        loop.post(Stop(3))
    in_decode(loop, 9)
    assert not loop.tokens(8)
    assert cached_of(loop, 9) >= 300
    loop.finish()
    assert loop.tokens(8) == alone(make_loop, 8, common + "d" * 1600)
    assert loop.tokens(9) == alone(make_loop, 9, common + "e" * 50)


def test_stops_of_one_prompt_cost_another_none_of_its_rows(make_loop: MakeLoop) -> None:
    """A short one that is replaced at each keystroke, beside a long one: steps have the rows of one run (G6)."""
    loop, side = beside_streams(make_loop, streams=1, side_cells=8000)
    loop.post(run_message(9, "x" * 1500, max_tokens=3), run_message(10, "y" * 400))
    for key in range(11, 100):
        if loop.tokens(9):
            break
        loop.turn(3)
        loop.post(Stop(key - 1), run_message(key, "y" * 400))
    assert loop.tokens(9)
    assert side.aborted > 2
    assert all(len(set(batch.sequences)) == 1 for batch in side.batches)
    rows = sum(max(batch.positions) >= 500 and len(batch.tokens) for batch in side.batches)
    assert rows <= 1500 + 100, "rows of the long prompt were computed twice"


def test_if_only_moving_back_fails_nothing_is_moved_any_more(make_loop: MakeLoop) -> None:
    """Or else a prompt would be computed again and again."""
    loop, side = beside_streams(make_loop)
    loop.post(run_message(9, PROMPT, max_tokens=3))
    until_aside(loop, side)
    side.moves_back_fail = True
    in_decode(loop, 9)
    rows = len(run_message(9, PROMPT).prompt)
    assert sum(len(batch.tokens) for batch in side.batches) == rows - 1
    assert loop.tokens(9) == alone(make_loop, 9, PROMPT, max_tokens=3)[: len(loop.tokens(9))]
    assert loop.faults == []


def test_a_step_that_is_done_does_not_show_that_moving_works_again(make_loop: MakeLoop) -> None:
    """A warm sequence cannot be moved back while another run's step is in progress: nothing is moved after that."""
    loop, side = beside_streams(make_loop, streams=1, side_cells=4000)
    loop.post(run_message(8, "y" * 1500, max_tokens=3), run_message(9, "x" * 900, cache="a"))
    computed_of(loop, 9, 100)
    while side.sequences == side.in_progress or not any(max(b.positions) > 950 for b in side.batches):
        loop.turn()
    assert len(side.sequences) == 2
    side.moves_back_fail = True
    loop.post(Stop(9))
    loop.turn()
    assert side.in_progress
    side.moves_back_fail = False
    in_decode(loop, 8)
    batches = len(side.batches)
    loop.post(run_message(10, PROMPT, max_tokens=3))
    in_decode(loop, 10)
    assert len(side.batches) == batches


def test_a_prompt_that_shares_its_beginning_is_moved_if_most_of_it_is_left(make_loop: MakeLoop) -> None:
    """Its copied cells count as its own. One with little left stays: copies of shared cells would fill the pool."""
    loop, side = beside_streams(make_loop, cells=4096)
    system = "s" * 200
    loop.post(run_message(7, system, cache="a"))
    in_decode(loop, 7)
    loop.post(run_message(8, system + "t" * 40, cache="a"))
    in_decode(loop, 8)
    assert side.slices == 0 or all(max(batch.positions) < 230 for batch in side.batches)
    before = len(side.batches)
    loop.post(run_message(9, system + "u" * 900, cache="a"))
    until_aside(loop, side)
    in_decode(loop, 9)
    assert len(side.batches) > before
    loop.finish()
    assert loop.tokens(9) == alone(make_loop, 9, system + "u" * 900)
    assert loop.faults == []


def test_a_prompt_that_would_take_long_to_move_stays_with_the_streams(make_loop: MakeLoop) -> None:
    """Streams and stops would wait for that (G1, G12)."""
    loop, side = beside_streams(make_loop)
    side.cell_bytes = 1_000_000
    loop.post(run_message(9, PROMPT))
    in_decode(loop, 9)
    assert side.slices == 0


def computed_of(loop: HandLoop, run: int, tokens: int) -> None:
    """Turn until so many tokens of a prompt are reported as computed."""
    for _ in range(400):
        done = [p.prompt_processed for step in loop.steps for p in step.progress if p.run == run]
        if max(done, default=0) >= tokens:
            return
        loop.turn()
    raise AssertionError("not computed")


def cached_of(loop: HandLoop, run: int) -> int:
    """How many tokens of a prompt were not computed."""
    return max((p.cached for step in loop.steps for p in step.progress if p.run == run), default=0)
