"""Any schedule of runs, stops and interrupts in the engine's loop: no run affects another (G4, G6)."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from hypothesis import given, settings, strategies as st

from tests.fakes import HandLoop, run_message
from tests.lanes import examples
from worker_orcd.engine.model import Outcome
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import FromEngine, Step, Stop, Stopped, Stored
from worker_orcd.supervisor.prefix_memory import prefix_memory

SEQUENCES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: when it arrives, what it is, and when it is stopped, if at all."""

    arrives: int
    prompt: int
    max_tokens: int
    text: str | None
    generated: int
    stopped_after: int | None
    late: bool
    """Whether its stop arrives after messages are read, so that it has to abort the step."""
    cache: str | None
    """The namespace of its prefixes."""


Kind = dict[str, Any]
KINDS: list[Kind] = [
    {},
    {},
    {"side_cells": 8192},
    {"side_cells": 600},
    {"window": 100},
    {"exact": True},
    {"recurrent": True},
    {"exact": True, "recurrent": True},
]
"""Kinds of memory. The first can keep prefixes, the one with a window only what was never longer, or all of it; with a
prefix store all of them can."""

PLANS = st.lists(
    st.builds(
        Plan,
        arrives=st.integers(0, 25),
        prompt=st.integers(0, 120) | st.integers(200, 500),
        max_tokens=st.integers(1, 20),
        text=st.none() | st.text("aSTOP漢👋 ", max_size=12),
        generated=st.integers(0, 6),
        stopped_after=st.none() | st.integers(0, 20),
        late=st.booleans(),
        cache=st.sampled_from([None, "a", "a", "b"]),
    ),
    min_size=1,
    max_size=8,
)


def message(run: int, plan: Plan) -> Run:
    """The message to generate it from its beginning."""
    given: dict[str, Any] = {"max_tokens": plan.max_tokens, "stop": ("STOP",), "cache": plan.cache}
    if plan.text is None:
        return run_message(run, "p" * plan.prompt, **given)
    escaped = plan.text.encode("unicode_escape").decode() if plan.text.isascii() else plan.text
    return run_message(
        run, f'{{"text": "{escaped}", "token_ms": 0, "row_ms": 0}}' + "p" * plan.prompt, **given
    )


@lru_cache(maxsize=4096)
def alone(order: Run) -> tuple[tuple[tuple[int | None, str], ...], str]:
    """The output of a run that is alone in the engine, and how it ends."""
    loop = HandLoop(parallel=1)
    loop.post(order)
    loop.finish()
    out = tuple((o.token, o.text) for step in loop.steps for o in step.tokens)
    (end,) = loop.ends(order.number)
    loop.close()
    return out, end


def requeues(order: Run, plan: Plan) -> Run:
    """The run with its first tokens generated, but not its last: a run that has ended is not requeued."""
    tokens = [token for token, _ in alone(order)[0] if token is not None]
    return msgspec.structs.replace(
        order, generated=tuple(tokens[: min(plan.generated, max(0, len(tokens) - 1))])
    )


class Schedule:
    """Plays plans against a loop, turn by turn."""

    def __init__(self, loop: HandLoop, plans: list[Plan]) -> None:
        self.loop = loop
        self.plans = plans
        self.orders = [requeues(message(run, plan), plan) for run, plan in enumerate(plans)]
        self.waiting = sorted(range(len(plans)), key=lambda run: (plans[run].arrives, run))
        self.inside: dict[int, int] = {}
        """Runs in the engine, and the turn in which each arrived."""
        self.asked: set[int] = set()

    def play(self, interrupts: set[int]) -> None:
        """Turn until all runs have arrived and ended."""
        model, byte = self.loop.model, self.loop.byte
        model.during_step = lambda: byte.set() if len(model.steps) in interrupts else None
        if (side := model.side) is not None:
            side.during_slice = lambda: byte.set() if side.slices in interrupts else None
        turn = 0
        while self.waiting or self.inside:
            assert turn < 3000, "the schedule does not end"
            self._post(turn)
            before = len(self.loop.sent)
            self.loop.turn_idle()
            check_counts(self.loop)
            for message in self.loop.sent[before:]:
                self._received(message)
            turn += 1
        model.during_step = lambda: None
        # Stops that arrived too late are answered, too.
        self.loop.finish()

    def _post(self, turn: int) -> None:
        """Send the runs and stops that are due: before messages are read, or right after that."""
        while self.waiting and self.plans[self.waiting[0]].arrives <= turn and len(self.inside) < SEQUENCES:
            self.inside[self.waiting[0]] = turn
            self.loop.post(self.orders[self.waiting.pop(0)])
        due = [run for run, came in self.inside.items() if self._due(run, turn - came)]
        self.asked.update(due)
        self.loop.post(*(Stop(run) for run in due if not self.plans[run].late))
        late = [Stop(run) for run in due if self.plans[run].late]

        def arrive() -> None:
            self.loop.after_drain = lambda: None
            self.loop.post(*late)

        self.loop.after_drain = arrive

    def _due(self, run: int, age: int) -> bool:
        after = self.plans[run].stopped_after
        return after is not None and age >= after and run not in self.asked

    def _received(self, message: FromEngine) -> None:
        if isinstance(message, Stopped):
            self.inside.pop(message.run, None)
        if isinstance(message, Step):
            for end in message.ended:
                del self.inside[end.run]


@given(
    plans=PLANS,
    interrupts=st.sets(st.integers(0, 60)),
    kind=st.sampled_from(KINDS),
    stores=st.booleans(),
    decode_ms=st.sampled_from([1.0, 9.0, 40.0, 150.0]),
    row_ms=st.sampled_from([0.05, 1.0, 6.0]),
)
@settings(deadline=None, max_examples=examples(40))
def test_whatever_happens_beside_it_a_run_s_output_is_that_of_the_run_alone(
    plans: list[Plan], interrupts: set[int], kind: Kind, stores: bool, decode_ms: float, row_ms: float
) -> None:
    """Runs arrive, are requeued, end and are stopped, and steps are interrupted, without changing a token."""
    store = prefix_memory(1) if stores else None
    loop = HandLoop(parallel=SEQUENCES, cells=8192, store=store, **kind)
    loop.model.decode_ms, loop.model.prefill_row_ms = decode_ms, row_ms
    schedule = Schedule(loop, plans)
    schedule.play(interrupts)
    for run, plan in enumerate(plans):
        check_output(schedule, run, plan)
    assert loop.model.samplers_open == 0
    assert loop.faults == []
    if loop.steps:
        assert loop.model.cells_in_use() == loop.loop.cells_cached
    loop.close()
    if store is not None:
        os.close(store)


def check_output(schedule: Schedule, run: int, plan: Plan) -> None:
    """A run's tokens, texts and end are those of the run alone; a stopped run has a beginning of them."""
    reported_before = len(schedule.orders[run].generated)
    whole, how = alone(message(run, plan))
    got = tuple(
        (out.token, out.text) for step in schedule.loop.steps for out in step.tokens if out.run == run
    )
    ends = schedule.loop.ends(run)
    if ends:
        assert ends == [how]
        assert got == whole[reported_before:]
    else:
        assert run in schedule.asked
        assert got == whole[reported_before:][: len(got)]
    confirmations = [stop for stop in schedule.loop.stopped if stop.run == run]
    assert len(confirmations) == (run in schedule.asked)
    assert all(stop.cells_after == 0 for stop in confirmations)


def check_counts(loop: HandLoop) -> None:
    """The last report agrees with the model's cells; an aborted step changed nothing."""
    counted = [report for report in loop.sent if isinstance(report, Step | Stopped | Stored)]
    if counted:
        assert loop.model.cells_in_use() == counted[-1].cells_used + counted[-1].cells_cached
    sent = [report for report in loop.sent[-4:] if not isinstance(report, Stored)]
    last = sent[-1] if sent else None
    if isinstance(last, Step) and last.aborted:
        undone = loop.model.steps[-1]
        assert undone.abort_mode
        assert undone.outcome is Outcome.ABORTED
        if not loop.model.separate_streams:
            assert (last.tokens, last.ended) == ((), ())
            assert all(progress.cached > 0 for progress in last.progress)
    if len(sent) >= 2 and all(isinstance(report, Step) and report.aborted for report in sent[-2:]):
        # No run ended between them, so the second step was protected for the runs of the first.
        raise AssertionError("two steps in a row were aborted, and no stop was overdue")
