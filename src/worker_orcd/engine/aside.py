"""Computes prompts beside streams, in the model's side pool.

While runs are decoding, the prompts of other runs are moved aside, computed there in steps like those of prompts that
are alone, and moved back before their last row, from which the first token is drawn. Each step of the streams is
followed by a slice of such a step. In the streams' own steps a prompt would get a few rows at a time, and these cost
several times as much each as whole tiles of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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

    def __init__(  # all that a loop's parts share
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
        self._pace = Pace.FULL
        self._broken = False
        """Whether a step failed: prompts are then computed in the streams' steps, where a failure has its error."""
        self.runs: frozenset[int] = frozenset()

    @property
    def rows(self) -> int:
        """Number of rows in progress: cells that must stay free for them."""
        return self._step.plan.prefill_rows if self._step is not None else 0

    # Between steps: who is aside.

    def take(self) -> bool:
        """Move prompts aside. Returns whether any was."""
        if self._broken or len(self._live) == 1:
            return False
        self._pool = self._pool or self._model.side_pool()
        if self._pool is None or not self._streams():
            return False
        awaited = self._scheduler.awaited(self._ledger)
        taken = False
        for run, sequence in self._live.items():
            if not _worthwhile(sequence) or run in self.runs or run in awaited:
                continue
            aside = [self._live[other] for other in self.runs]
            room = self._pool.room - sum(len(other.tokens) - other.computed for other in aside)
            tokens = len(sequence.tokens)
            if tokens <= room and self._pool.prepare(tokens) and self._model.move_aside(sequence.id):
                self.runs |= {run}
                taken = True
        return taken

    def bring_back(self) -> bool:
        """Move back what other runs may start from, or what is aside for no reason any more. Returns whether there was
        any."""
        if self._pool is None or not self._pool.sequences:
            return False
        awaited = self._scheduler.awaited(self._ledger)
        streams = not self._broken and self._streams()

        def returns(slot: Slot) -> bool:
            shared = slot.run in awaited and awaited[slot.run] <= slot.computed
            return shared or not streams or not slot.holder.live

        return self._bring_back(self._pool, returns)

    def bring_back_ready(self) -> bool:
        """Move back the prompts of which only the last row is left. Returns whether there was any."""
        if self._pool is None:
            return False
        return self._bring_back(self._pool, lambda slot: len(slot.tokens) - slot.computed <= 1)

    def _bring_back(self, pool: SidePool, returns: Callable[[Slot], bool]) -> bool:
        settled = pool.sequences - pool.in_progress
        returning = [slot for slot in self._ledger.resident if slot.id in settled and returns(slot)]
        for slot in returning:
            if not self._model.move_back(slot.id):
                self._ledger.restart(slot)
        self.runs = frozenset(run for run in self.runs if self._model.is_aside(self._live[run].id))
        return bool(returning)

    def leave(self, sequence: Sequence) -> None:
        """Forget a run that is over or preempted. A step with its rows is lost; its cells are moved back later."""
        if self._pool is not None and sequence.id in self._pool.in_progress:
            self._pool.abort()
            self._step = None
        self.runs -= {sequence.run.number}

    def _streams(self) -> bool:
        return any(sequence.pending.decoding for sequence in self._live.values())

    # After a step of the streams: a slice.

    def plan(self) -> Plan:
        """The next step; without rows if one is in progress, or there is nothing to compute."""
        prompts = [self._live[run] for run in self._live if run in self.runs and self._step is None]
        wanted = [(one.run, pending) for one in prompts if (pending := _all_but_last(one)).rows]
        return plan_step(
            urgent_prompts_first(wanted, self._scheduler.followers(self._ledger)),
            self._cost,
            pace=self._pace,
            layers=self._model.layers,
            node_ms=BESIDE_NODE_MS,
        )

    def begin(self, plan: Plan) -> None:
        """Begin a step, if it has rows. The ledger has room for them."""
        if self._pool is not None and plan.shares:
            [part] = parts_of(plan, self._live, separate_streams=False)
            self._pool.begin(part.batch, plan.predicted_ms)
            self._step = _Step(plan, part)

    def slice_ms(self, beside: Plan | None) -> float:
        """How long a slice lasts after this step of the streams. Zero if no run is aside."""
        return beside_ms(self._cost, beside) if self.runs else 0.0

    def proceed(self, beside: Plan | None) -> StepResult:
        """Compute a slice of the step in progress, after this step of the streams. Returns the rows that were computed,
        if the step has ended."""
        result = StepResult()
        if self._pool is None or (step := self._step) is None:
            return result
        started = self._clock()
        outcome = self._pool.proceed(started + self.slice_ms(beside) / 1000)
        step.spent_ms += (self._clock() - started) * 1000
        if outcome is None:
            return result
        self._step = None
        self._pace = Pace.FULL if outcome is Outcome.DONE else Pace.SHORT
        self._broken = outcome not in (Outcome.DONE, Outcome.ABORTED)
        if outcome is Outcome.DONE:
            self._cost.learn(step.plan, step.spent_ms)
            result.add(step.part, self._live, self._ledger, self._model, self._clock())
        return result


def _worthwhile(sequence: Sequence) -> bool:
    """Whether a prompt is worth moving, and only its last row's results are needed."""
    request = sequence.run.request
    plain = request.embed is None and not sequence.wants_logits(sequence.computed)
    return plain and not sequence.pending.decoding and sequence.pending.rows > MIN_PREFILL_ROWS


def _all_but_last(sequence: Sequence) -> Pending:
    pending = sequence.pending
    return replace(pending, rows=min(pending.rows, len(sequence.tokens) - sequence.computed - 1))
