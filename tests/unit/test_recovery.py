"""Neighbours of a storm of cancels make progress at any rate and load (G6), and stops stay in time (G1)."""

from dataclasses import dataclass, field

import pytest

from tests.fakes import HandLoop, HandTimers, MakeLoop, run_message
from worker_orcd.engine.model import AbortMode, Outcome
from worker_orcd.engine.planner import Pace
from worker_orcd.engine.recovery import MAX_ABORTS_IN_A_ROW, SHORT_STEPS, Recovery
from worker_orcd.protocol.messages import FromEngine, Step, Stop, Stopped
from worker_orcd.supervisor.interrupter import Interrupter

NEIGHBOURS = (1, 2, 3)
VICTIM_PROMPT = "v" * 300


def test_only_runs_that_were_not_computed_are_protected() -> None:
    """Until they are computed in a step, or have ended."""
    recovery = Recovery()
    assert (recovery.pace(), recovery.abort_mode()) == (Pace.FULL, AbortMode.ANY)
    recovery.aborted([1, 2, 3])
    assert recovery.protected([1, 2, 9]) == {1, 2}
    assert (recovery.pace(), recovery.abort_mode()) == (Pace.PROTECTED, AbortMode.OVERDUE)
    recovery.done([1])
    assert recovery.protected([1, 2, 9]) == {2}
    recovery.aborted([3], computed=[2])
    assert recovery.protected([1, 2, 3, 9]) == {3}
    recovery.done([3])
    assert recovery.protected([1, 2, 3, 9]) == set()


def test_steps_stay_short_for_a_while() -> None:
    """In a storm the next cancel comes soon."""
    recovery = Recovery()
    recovery.aborted([1])
    for _ in range(SHORT_STEPS - 1):
        recovery.done([1])
        assert (recovery.pace(), recovery.abort_mode()) == (Pace.SHORT, AbortMode.ANY)
    recovery.done([1])
    assert recovery.pace() is Pace.FULL


def test_after_many_aborts_in_a_row_a_step_is_not_aborted_at_all() -> None:
    """Otherwise streams would starve where even one row takes longer than a stop may wait."""
    recovery = Recovery()
    for _ in range(MAX_ABORTS_IN_A_ROW):
        assert recovery.abort_mode() is not AbortMode.NONE
        recovery.aborted([1])
    assert recovery.abort_mode() is AbortMode.NONE
    recovery.done([1])
    recovery.aborted([1])
    assert recovery.abort_mode() is AbortMode.OVERDUE


@dataclass
class Storm:
    """A front in the loop's own time: it starts and cancels jobs, and interrupts steps as the real front does."""

    loop: HandLoop
    every_sec: float
    waits_ms: list[float] = field(default_factory=list)
    """How long each stop took."""

    def __post_init__(self) -> None:
        """Listen to the engine and to its clock."""
        self.timers = HandTimers(self.loop.clock.now)
        self.interrupter = Interrupter(self.timers.call_later, self.loop.byte.set, self.loop.byte.set_overdue)
        self._asked: dict[int, float] = {}
        self._victim = 1000
        self.loop.on_send = self._hear
        self.loop.model.each_ms = lambda: self.timers.run_until(self.loop.clock.now)
        self.timers.call_later(self.every_sec, self._cancel)

    def _cancel(self) -> None:
        """Cancel the job that was started last, and start the next one."""
        if self._victim not in self._asked:
            self._asked[self._victim] = self.loop.clock.now
            self.loop.post(Stop(self._victim), interrupt=False)
            self.interrupter.stop_sent(self._victim)
            self._victim += 1
            self.loop.post(run_message(self._victim, VICTIM_PROMPT, max_tokens=50))
        self.timers.call_later(self.every_sec, self._cancel)

    def _hear(self, message: FromEngine) -> None:
        if isinstance(message, Stopped):
            self.interrupter.stopped(message.run)
            self.waits_ms.append((self.loop.clock.now - self._asked[message.run]) * 1000)


def weather(make_loop: MakeLoop, slower: float, every_sec: float, *, exact: bool) -> Storm:
    """Three neighbours, one of them with a long prompt, on a machine that has become this many times slower."""
    loop = make_loop(parallel=8, cells=64000, exact=exact)
    loop.warm_up()
    loop.post(*(run_message(run, max_tokens=100_000) for run in NEIGHBOURS[:2]))
    loop.turn(10)
    loop.post(run_message(NEIGHBOURS[2], "n" * 2000, max_tokens=100_000))
    loop.model.decode_ms *= slower
    loop.model.prefill_row_ms *= slower
    return Storm(loop, every_sec)


@pytest.mark.parametrize(
    ("slower", "every_sec", "exact"),
    [
        (1.0, 0.01, False),
        (1.0, 0.05, False),
        (1.0, 0.2, True),
        (10.0, 0.01, False),
        (10.0, 0.05, False),
        (10.0, 0.05, True),
        (10.0, 0.2, False),
    ],
)
def test_beside_steady_cancels_most_steps_are_done_and_each_neighbour_progresses(
    make_loop: MakeLoop, slower: float, every_sec: float, exact: bool
) -> None:
    """Also where steps take ten times as long as predicted; and no stop waits for more than 100 ms."""
    storm = weather(make_loop, slower, every_sec, exact=exact)
    loop, began = storm.loop, storm.loop.clock.now
    reported = {run: len(loop.tokens(run)) for run in NEIGHBOURS}
    steps = len(loop.steps)
    seconds = 5.0
    while loop.clock.now < began + seconds:
        loop.turn()
    outcomes = [step.aborted for step in loop.steps[steps:]]
    aborted = outcomes.count(True)
    assert aborted > 0, "nothing was tried"
    assert aborted < outcomes.count(False)
    per_second = {run: (len(loop.tokens(run)) - reported[run]) / seconds for run in NEIGHBOURS[:2]}
    assert min(per_second.values()) >= 0.1 * 1000 / loop.model.decode_ms / len(NEIGHBOURS)
    read = max(p.prompt_processed for s in loop.steps for p in s.progress if p.run == NEIGHBOURS[2])
    assert read > min(1999, 0.05 * seconds * 1000 / loop.model.prefill_row_ms)
    assert len(storm.waits_ms) > 5
    assert max(storm.waits_ms) <= 100


def test_where_one_row_takes_longer_than_a_stop_may_wait_neighbours_make_progress_all_the_same(
    make_loop: MakeLoop,
) -> None:
    """A row of 300 ms and a cancel every 50 ms: most stops are in time, and now and then one waits for a row."""
    storm = weather(make_loop, 60.0, 0.05, exact=False)
    loop, began = storm.loop, storm.loop.clock.now
    reported = {run: len(loop.tokens(run)) for run in NEIGHBOURS}
    while loop.clock.now < began + 20:
        loop.turn()
    assert all(len(loop.tokens(run)) - reported[run] >= 2 for run in NEIGHBOURS[:2])
    assert any(p.run == NEIGHBOURS[2] for s in loop.steps[-200:] for p in s.progress)
    late = [ms for ms in storm.waits_ms if ms > 100]
    assert len(late) < 0.25 * len(storm.waits_ms)
    assert max(storm.waits_ms) <= 400
    assert Outcome.ABORTED in {step.outcome for step in loop.model.steps}
    assert isinstance(loop.sent[-1], Step | Stopped)
