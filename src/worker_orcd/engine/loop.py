"""The engine's loop: read messages, plan a step, compute it, report it.

One turn is one step, from messages to report. The order in a turn guarantees that no stop is lost: the loop clears the
interrupt byte *before* it reads messages, and the front sets the byte *after* its message is in the socket. So a stop
is either read in this turn, or it aborts this turn's step.
"""

import time
from collections.abc import Callable, Collection, Iterable

from msgspec.structs import replace

from worker_orcd import narration
from worker_orcd.engine.aside import Aside
from worker_orcd.engine.ledger import Ledger
from worker_orcd.engine.model import REPORTED, AbortMode, Model, Outcome, failure_of
from worker_orcd.engine.parts import Part, StepResult, parts_of, runs_of
from worker_orcd.engine.planner import MAX_ROWS, CostEstimate, Pending, Plan, plan_step
from worker_orcd.engine.prefix_store import PrefixStore
from worker_orcd.engine.recovery import Recovery
from worker_orcd.engine.rollback import Rollback
from worker_orcd.engine.run import Run
from worker_orcd.engine.saving import Saving
from worker_orcd.engine.scheduler import Live, Scheduler, least_urgent
from worker_orcd.engine.sequence import Sequence
from worker_orcd.engine.slot import Closed
from worker_orcd.engine.urgency import urgent_prompts_first
from worker_orcd.engine.warm_up import WarmUp
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import (
    AuditFault,
    EndOfRun,
    FromEngine,
    Ping,
    Pong,
    Progress,
    Started,
    Step,
    Stop,
    Stopped,
    Stored,
)

_GRAMMAR_WAIT_SEC = 0.005
"""Interval of reading messages while no run can be computed."""


class EngineLoop:
    """Owns the model. The process calls `turn` in a loop; a test calls it step by step."""

    def __init__(  # noqa: PLR0913  # all that a loop is connected to
        self,
        model: Model,
        interrupt: InterruptByte,
        drain: Callable[[], Iterable[Run | Stop | Ping]],
        send: Callable[[FromEngine], None],
        narrator: narration.Narrator,
        clock: Callable[[], float] = time.monotonic,
        store: PrefixStore | None = None,
    ) -> None:
        self._model = model
        self._interrupt = interrupt
        self._drain = drain
        self._send = send
        self._narrator = narrator
        self._clock = clock
        self._scheduler = Scheduler(model.facts.sequences)
        self._sequences: dict[int, Sequence] = {}
        self._ledger = Ledger(model, Saving(model, store, clock) if store is not None else None)
        self._store = store
        self._stored_bytes: int | None = None
        """The size of the prefix store as reported last."""
        self._preempted: list[int] = []
        """Runs that were preempted since the last report."""
        self._reused: list[Progress] = []
        """Runs admitted since the last report that reused cells, and how many."""
        self._crowded = False
        """Whether the model ran out of room before the ledger did, and no run has been freed since."""
        self._rollback = Rollback(model)
        self._cost = CostEstimate()
        self.warm_up = WarmUp(model, self._cost, clock)
        self._recovery = Recovery()
        self._aside = Aside(model, self._ledger, self._scheduler, self._sequences, self._cost, clock)
        self._planned: Plan | None = None
        """The plan of the next step, unless a message changes it."""

    def turn(self) -> bool:
        """Read messages, then run one step. Returns False if there was nothing to do.

        Raises:
            NoUsableSequence: the model's memory cannot be made to match the ledger.
        """
        self._interrupt.clear()
        for message in self._drain():
            self._planned = None
            match message:
                case Run():
                    self._scheduler.add(message.for_model(self._model.embeds_behind_prefix))
                case Stop():
                    self._stop(message.run)
                case Ping():
                    self._free_unknown_runs(message.runs)
                    self._send(Pong())
        if self._aside.bring_back():
            self._planned = None
        self._open_slots()
        if not self._sequences:
            self._audit()
            return self._save_prefixes()
        self._step()
        self._save_prefixes()
        self._compute_aside()
        return True

    # Runs.

    def _open_slots(self) -> None:
        """Admit waiting runs while they fit, in their order. A waiting run may preempt less urgent runs.

        After the model ran out of room before the ledger did, no run is admitted until a live run is over.
        """
        while (
            not (self._crowded and self._sequences)
            and (opening := self._scheduler.next(self._sequences.values(), self._ledger)) is not None
        ):
            run, giving_way = opening
            if giving_way:
                self._preempt(giving_way)
            self._begin(run)
            self._planned = None

    def _begin(self, run: Run) -> None:
        request = run.request
        self._send(Started(run.number))
        slot = self._ledger.open(run.number, [*run.prompt, *run.generated], request.cache)
        sequence = self._sequences[run.number] = Sequence(run, slot, self._model)
        if slot.reused:
            self._reused.append(Progress(run.number, sequence.prompt_processed, sequence.prompt_cached))
        self._narrator.emit(
            narration.ExecuteStart(
                job_id=request.job_id,
                prompt_chars=request.prompt_chars,
                prompt_sha256=request.prompt_sha256,
                prompt_tokens=len(run.prompt),
                max_tokens=run.max_tokens,
                seed=request.sampling.seed or 0,
            ),
            correlation_id=request.correlation_id,
            owner=request.owner,
        )

    def _stop(self, run: int) -> None:
        """Free a run and confirm it. An unknown run is confirmed, too: it holds no cells."""
        stopped_at = self._clock()
        waiting, sequence = self._scheduler.remove(run), self._sequences.get(run)
        processed, cached = (sequence.prompt_processed, sequence.prompt_cached) if sequence else (0, 0)
        warm = (
            self._ledger.available(waiting.run.request.cache, waiting.tokens[: waiting.computed])
            if waiting
            else 0
        )
        closed = self._free(sequence) if sequence else Closed(0, 0, warm)
        freed_at = self._clock()
        self._audit()
        now, after = self._clock(), closed.after
        if sequence is not None and after:
            # The audit has tried again to free the remaining cells.
            after, freed_at = self._model.cells(sequence.id), now
        self._send(
            Stopped(
                run=run,
                stopped_ago_ms=(now - stopped_at) * 1000,
                freed_ago_ms=None if after else (now - freed_at) * 1000,
                cells_before=closed.before,
                cells_after=after,
                prompt_processed=processed,
                prompt_cached=cached,
                cells_used=self._ledger.held,
                sequences_used=self._ledger.live,
                cells_cached=self._ledger.warm,
                cells_warm=closed.warm,
            )
        )

    def _free(self, sequence: Sequence) -> Closed:
        """End a live run and close its slot. Its cells belong to no run afterwards."""
        del self._sequences[sequence.run.number]
        self._crowded = False
        self._aside.leave(sequence)
        sequence.close()
        return self._ledger.close(sequence.slot)

    def _free_unknown_runs(self, runs: tuple[int, ...]) -> None:
        """Free runs that are not in the front's list. The front removes a run only after the engine reported its
        end."""
        for run in (self._sequences.keys() | self._scheduler.waiting) - set(runs):
            self._scheduler.remove(run)
            if run in self._sequences:
                self._free(self._sequences[run])
            self._send(AuditFault(run, f"run {run} is unknown to the front", repaired=True))

    def _audit(self, *, whole: bool = True) -> None:
        """Audit the ledger: after every stop and end, and on every ping while idle; after other steps, less of it."""
        for fault in self._ledger.audit(whole=whole):
            self._send(fault)

    def _save_prefixes(self) -> bool:
        """Copy due prefixes to the store, after the step's results are sent. Returns whether any was due."""
        saved = self._ledger.save_next()
        if self._store is not None and (saved or self._store.used != self._stored_bytes):
            self._stored_bytes = self._store.used
            self._send(Stored(self._stored_bytes, self._ledger.held, self._ledger.warm))
        return saved

    # Steps.

    def _step(self) -> None:
        if (self._planned is None or self._planned.prefill_rows) and self._aside.take():
            self._planned = None
        plan, started = self._with_room(self._planned or self._plan(), self._plan), self._clock()
        result = StepResult()
        if plan.shares:
            result = self._compute(plan, abort_mode=self._recovery.abort_mode())
            self._learn(plan, result, (self._clock() - started) * 1000)
        else:
            self._planned = None
            if not self._aside.runs:
                self._wait_for_grammars()
        if plan.shares or self._preempted:
            self._report(result, started)

    def _report(self, result: StepResult, started: float) -> None:
        """Free what has ended, audit, plan the next step, and report a step that began at `started`."""
        # Freeing runs moves sequence ids, so ended runs are freed only after the last part.
        ends = [self._end(end) for end in result.ends]
        for late in result.late:
            self._preempt([self._sequences[late]])
        if result.outcome not in (Outcome.DONE, Outcome.ABORTED):
            ends += self._fail(result)
        self._audit(whole=bool(ends))
        progress, self._reused = [*self._reused, *result.progress], []
        preempted, self._preempted = self._preempted, []
        self._planned = self._plan()
        self._send(
            Step(
                duration_ms=(self._clock() - started) * 1000,
                tokens=tuple(result.tokens),
                progress=tuple(progress),
                ended=tuple(ends),
                cells_used=self._ledger.held,
                sequences_used=self._ledger.live,
                cells_cached=self._ledger.warm,
                next_ms=self.next_ms,
                outcome=REPORTED[result.outcome],
                preempted=tuple(preempted),
                prompt_computed=result.prompt_computed,
                prompt_logprobs=tuple(result.prompt_logprobs),
                returned=tuple(self._scheduler.surplus()),
                followers=sum(map(len, self._scheduler.followers(self._ledger).values())),
            )
        )

    @property
    def next_ms(self) -> float:
        """Predicted duration of the next step; without a live run, of the first step of a long prompt."""
        planned = self._planned if self._sequences else None
        alone = planned or self._plan_of([Pending(0, MAX_ROWS, 0, decoding=False)])
        return alone.predicted_ms + self._aside.slice_ms(planned)

    @property
    def cells_cached(self) -> int:
        """KV cells that are warm: kept for later runs and held by none."""
        return self._ledger.warm

    def _learn(self, plan: Plan, result: StepResult, took_ms: float) -> None:
        """Update the cost estimate from a step's duration, and the protection of runs from its outcome."""
        undone = {*result.undone, *result.skipped}
        computed = {share.key for share in plan.shares} - undone
        if result.outcome is Outcome.DONE:
            self._cost.learn(plan, took_ms)
            self._recovery.done(computed)
        elif result.outcome is Outcome.ABORTED:
            self._cost.aborted(plan, took_ms)
            self._recovery.aborted(undone, computed)

    def _with_room(self, plan: Plan, replan: Callable[[], Plan]) -> Plan:
        """Make room for a step: preempt less urgent runs if cells are short, never the most urgent one."""
        while not self._ledger.can_grow(self._rows(plan)) and len(self._sequences) > 1:
            self._preempt(self._sequences.values())
            plan = replan()
        self._ledger.grow(self._rows(plan))
        return plan

    def _rows(self, plan: Plan) -> int:
        """Number of cells that a plan's rows and those in progress need."""
        return plan.decode_rows + plan.prefill_rows + self._aside.rows

    def _plan(self) -> Plan:
        """Plan the next step: for the protected runs if there are any, otherwise for all runs."""
        protected = self._recovery.protected(self._sequences.keys() - self._aside.runs)
        taking_part = [s for run, s in self._sequences.items() if not protected or run in protected]
        wanted = [(s.run, pending) for s in taking_part if (pending := s.pending).rows]
        first = urgent_prompts_first(wanted, self._scheduler.followers(self._ledger))
        return self._plan_of([pending for pending in first if pending.key not in self._aside.runs])

    def _plan_of(self, pending: list[Pending]) -> Plan:
        return plan_step(
            pending,
            self._cost,
            pace=self._recovery.pace(),
            abortable=self._model.abortable,
            layers=self._model.layers,
        )

    def _compute_aside(self) -> None:
        """Compute a slice of a step in the side pool, which a stop ends, but does not abort."""
        if not self._aside.runs:
            return
        if self._aside.bring_back_ready():
            self._planned = None
            return
        self._aside.begin(self._with_room(self._aside.plan(), self._aside.plan))
        started = self._clock()
        if (result := self._aside.proceed(self._planned)) is not None:
            self._report(result, started)

    def _wait_for_grammars(self) -> None:
        """Wait a moment, because no run can take part in a step before its grammar is ready."""
        for sequence in self._sequences.values():
            sequence.wait(_GRAMMAR_WAIT_SEC / len(self._sequences))

    def _preempt(self, candidates: Collection[Live]) -> None:
        """Preempt the least urgent of these runs: it waits again until it fits."""
        followers = self._scheduler.followers(self._ledger)
        victim = self._sequences[least_urgent(candidates, followers).run.number]
        rest, computed = victim.rest, victim.computed
        self._free(victim)
        self._scheduler.add(rest, computed)
        self._preempted.append(rest.number)
        self._planned = None

    def _compute(self, plan: Plan, *, abort_mode: AbortMode) -> StepResult:
        """Compute a step part by part. Each part is sampled before the next part overwrites its logits. The first part
        that fails or is aborted is rolled back, and the later parts are skipped; results of earlier parts stay.
        """
        result = StepResult()
        self._ledger.close_gaps()
        parts = parts_of(plan, self._sequences, separate_streams=self._model.separate_streams)
        for number, part in enumerate(parts):
            if abort_mode and self._model.abortable:
                self._rollback.prepare(self._ledger.resident)
            result.outcome = self._model.decode(part.batch, abort_mode=abort_mode)
            if result.outcome is not Outcome.DONE:
                self._undo(part, result.outcome)
                result.undone, result.skipped = runs_of([part]), runs_of(parts[number + 1 :])
                break
            result.add(part, self._sequences, self._ledger, self._model, self._clock())
        return result

    def _end(self, end: EndOfRun) -> EndOfRun:
        closed = self._free(self._sequences[end.run])
        return replace(end, cells_before=closed.before, cells_after=closed.after, cells_warm=closed.warm)

    def _undo(self, part: Part, outcome: Outcome) -> None:
        """Roll back a part that was aborted or failed. A run whose memory is lost is computed again; no run ends."""
        computed = [self._sequences[run].slot for run in runs_of([part])]
        for slot in self._rollback.undo(self._ledger.resident, computed, outcome):
            self._rollback.forget(slot)
            self._ledger.restart(slot)

    def _fail(self, result: StepResult) -> list[EndOfRun]:
        """Handle a part that failed. Returns the ends of the runs that fail with it."""
        separate = self._model.separate_streams
        if result.outcome is Outcome.NO_ROOM and self._ledger.evict_warm():
            return []
        if result.outcome is Outcome.NO_ROOM and len(self._sequences) > 1 and not separate:
            self._preempt(self._sequences.values())
            self._crowded = True
            return []
        if result.outcome is Outcome.NO_ROOM:
            # With separate streams, preempting another run would not free cells for this one.
            ends = [self._failed(key, "INTERNAL", "no free KV cells") for key in result.undone]
        else:
            failure = failure_of(result.outcome, self._model.facts.device)
            ends = [self._failed(key, *failure) for key in result.undone]
        if separate:
            # llama.cpp's search heads may be wrong now (see `parts.py`). Clearing them requires an empty cache.
            while self._sequences:
                self._preempt(self._sequences.values())
            self._model.clear()
        return ends

    def _failed(self, key: int, code: str, message: str) -> EndOfRun:
        """End a run with an error. The front logs it, like every job's end."""
        return self._end(EndOfRun(key, None, 0, 0, code, message))
