"""Computes prompts beside streams, in the model's side pool.

While runs are decoding, the prompts of other runs are moved aside, computed there in steps like those of prompts that
are alone, and moved back before their last row, from which the first token is drawn. Each step of the streams is
followed by a slice of such a step. In the streams' own steps a prompt would get a few rows at a time, and these cost
several times as much each as whole tiles of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from worker_orcd.engine.copy_rate import CopyRate
from worker_orcd.engine.ledger import Ledger
from worker_orcd.engine.model import Model, Outcome, SidePool
from worker_orcd.engine.parts import Part, StepResult, parts_of
from worker_orcd.engine.planner import (
    BESIDE_NODE_MS,
    MIN_PREFILL_ROWS,
    CostEstimate,
    Pace,
    Pending,
    Plan,
    beside_ms,
    plan_step,
)
from worker_orcd.engine.scheduler import Scheduler
from worker_orcd.engine.sequence import Sequence
from worker_orcd.engine.slot import Slot
from worker_orcd.engine.urgency import urgent_prompts_first

MOVE_MS = 40.0
"""The longest predicted time of moving a sequence, since streams and stops wait for it."""
_NOTHING = Plan((), 0, 0, 0, 0.0)


@dataclass(slots=True)
class _Step:
    """The step in progress, and for how long it has computed."""

    plan: Plan
    part: Part
    spent_ms: float = 0.0


class Aside:
    """The runs whose prompts are computed in the side pool, and their step.

    Attributes:
        runs: the numbers of these runs.
    """

    def __init__(
        self,
        model: Model,
        ledger: Ledger,
        scheduler: Scheduler,
        live: Mapping[int, Sequence],
        cost: CostEstimate,
        clock: Callable[[], float],
    ) -> None:
        """All but the clock belong to the loop. `live`: the live runs, by number."""
        self._model = model
        self._ledger = ledger
        self._scheduler = scheduler
        self._live = live
        self._cost = cost
        self._clock = clock
        self._pool: SidePool | None = None
        self._step: _Step | None = None
        self._oldest_next = True
        self._pace = Pace.FULL
        self._rate = CopyRate()
        self._stays: set[int] = set()
        """Live runs that are not moved aside (any more): too long to be moved, or other runs share their cells."""
        self._broken = False
        """Whether a step or a move failed: prompts are then computed in the streams' steps, where a failure has its
        error."""
        self.runs: frozenset[int] = frozenset()

    @property
    def rows(self) -> int:
        """Number of rows in progress: cells that must stay free for them."""
        return self._step.plan.prefill_rows if self._step is not None else 0

    # Between steps: who is aside.

    def take(self) -> bool:
        """Move a prompt aside. Returns whether there was one."""
        if self._broken or len(self._live) == 1:
            return False
        self._pool = self._pool or self._model.side_pool()
        if self._pool is None or not self._streams():
            return False
        self._stays.update(self._scheduler.awaited(self._ledger))
        sequence = next((s for s in self._live.values() if self._worthwhile(s, self._pool)), None)
        if sequence is None:
            return False
        self._ledger.unshare(sequence.slot)
        if not self._move(sequence.slot, self._pool, self._model.move_aside):
            return False
        self.runs |= {sequence.run.number}
        return True

    def bring_back(self) -> bool:
        """Move back a sequence that other runs may start from, or that is aside for no reason any more. Returns whether
        there was one."""
        if self._pool is None or not self._pool.sequences:
            return False
        awaited = self._scheduler.awaited(self._ledger)
        streams = not self._broken and self._streams()

        def returns(slot: Slot) -> bool:
            shared = slot.run in awaited and awaited[slot.run] <= slot.computed
            if shared and slot.holder.live:
                self._stays.add(slot.run)
            return shared or not streams or not slot.holder.live

        return self._bring_back(self._pool, returns)

    def bring_back_ready(self) -> bool:
        """Move back a prompt of which only the last row is left. Returns whether there was one."""
        if self._pool is None:
            return False
        return self._bring_back(self._pool, lambda slot: len(slot.tokens) - slot.computed <= 1)

    def _bring_back(self, pool: SidePool, returns: Callable[[Slot], bool]) -> bool:
        """Move one sequence back: the others wait for the next turn, so that streams do not wait for all."""
        settled = pool.sequences - pool.in_progress
        returning = [slot for slot in self._ledger.resident if slot.id in settled and returns(slot)]
        slot = min(returning, key=lambda slot: slot.holder.live, default=None)
        if slot is not None and not self._move(slot, pool, self._model.move_back):
            self._broken = True
            self._ledger.restart(slot)
        self.runs = frozenset(run for run in self.runs if self._model.is_aside(self._live[run].id))
        return bool(returning)

    def _move(self, slot: Slot, pool: SidePool, move: Callable[[int], bool]) -> bool:
        size, started = pool.cell_bytes * slot.computed, self._clock()
        moved = move(slot.id)
        if moved and size:
            self._rate.learn(size, (self._clock() - started) * 1000)
        return moved

    def _worthwhile(self, sequence: Sequence, pool: SidePool) -> bool:
        """Whether a prompt can be moved, and saves more than it costs. Only its last row's results are needed."""
        request, slot, pending = sequence.run.request, sequence.slot, sequence.pending
        if (
            pending.decoding
            or pending.rows <= MIN_PREFILL_ROWS
            or sequence.run.number in self.runs | self._stays
        ):
            return False
        tokens = len(sequence.tokens)
        if not self._rate.allows(pool.cell_bytes * tokens, MOVE_MS):
            self._stays.add(sequence.run.number)
            return False
        plain = request.embed is None and not sequence.wants_logits(sequence.computed)
        aside = [self._live[other] for other in self.runs]
        fits = tokens <= pool.room - sum(len(other.tokens) - other.computed for other in aside)
        # Cells that are copied are not shared any more, and take room.
        few = slot.computed < tokens - slot.computed and self._ledger.can_grow(slot.computed + pending.rows)
        return plain and fits and (few or not slot.holder.shared) and pool.prepare(tokens)

    def leave(self, sequence: Sequence) -> None:
        """Forget a run that is over or preempted. A step with its rows is lost; its cells are moved back later."""
        if self._pool is not None and sequence.id in self._pool.in_progress:
            self._pool.abort()
            self._step = None
        self.runs -= {sequence.run.number}
        self._stays.discard(sequence.run.number)

    def _streams(self) -> bool:
        return any(s.pending.decoding for run, s in self._live.items() if run not in self.runs)

    # After a step of the streams: a slice.

    def plan(self) -> Plan:
        """The next step; without rows if one is in progress, or there is nothing to compute.

        A step has the rows of one run, the oldest prompt's and the shortest one's in turn. So a stop never costs
        another run its rows.
        """
        if self._step is not None:
            return _NOTHING
        wanted = [(one.run, pending) for one in self._live.values() if (pending := one.pending).rows]
        first = urgent_prompts_first(wanted, self._scheduler.followers(self._ledger))
        aside = [rest for one in first if (rest := self._all_but_last(one)).rows]
        if aside and not self._oldest_next:
            aside = [min(aside, key=lambda one: one.rows)]
        return plan_step(
            aside[:1], self._cost, pace=self._pace, layers=self._model.layers, node_ms=BESIDE_NODE_MS
        )

    def _all_but_last(self, pending: Pending) -> Pending:
        """The rows of a run that is aside; none of others."""
        sequence = self._live[pending.key]
        rows = min(pending.rows, len(sequence.tokens) - sequence.computed - 1)
        return replace(pending, rows=rows if pending.key in self.runs else 0)

    def begin(self, plan: Plan) -> None:
        """Begin a step, if it has rows. The ledger has room for them."""
        if self._pool is not None and plan.shares:
            [part] = parts_of(plan, self._live, separate_streams=False)
            self._pool.begin(part.batch, plan.predicted_ms)
            self._step = _Step(plan, part)
            self._oldest_next = not self._oldest_next

    def slice_ms(self, beside: Plan | None) -> float:
        """How long a slice lasts after this step of the streams. Zero if no run is aside."""
        return beside_ms(self._cost, beside) if self.runs else 0.0

    def proceed(self, beside: Plan | None) -> StepResult | None:
        """Compute a slice of the step in progress, after this step of the streams. Returns the results if all rows are
        computed."""
        if self._pool is None or (step := self._step) is None:
            return None
        started = self._clock()
        outcome = self._pool.proceed(started + self.slice_ms(beside) / 1000)
        step.spent_ms += (self._clock() - started) * 1000
        if outcome is None:
            return None
        self._step = None
        self._pace = Pace.FULL if outcome is Outcome.DONE else Pace.SHORT
        self._broken |= outcome not in (Outcome.DONE, Outcome.ABORTED)
        if outcome is not Outcome.DONE:
            return None
        self._cost.learn(step.plan, step.spent_ms)
        result = StepResult()
        result.add(step.part, self._live, self._ledger, self._model, self._clock())
        return result
