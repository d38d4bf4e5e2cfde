"""The engine's loop: look at messages, plan a step, compute it, report it.

One turn is the whole story of a step. The order in it is what keeps a stop from being lost: the interrupt byte is
cleared *before* messages are looked at, and the front sets it *after* its message is there. So a stop is either
seen in this turn, or it ends this turn's step.
"""

import heapq
import time
from collections.abc import Callable, Iterable

import msgspec

from worker_orcd import narration
from worker_orcd.engine.audit import Difference, differences
from worker_orcd.engine.model import REPORTED, Arming, Model, Outcome
from worker_orcd.engine.parts import Part, StepResult, parts_of, runs_of
from worker_orcd.engine.planner import MAX_ROWS, CostEstimate, Pending, Plan, plan_step
from worker_orcd.engine.recovery import Recovery
from worker_orcd.engine.rollback import Rollback
from worker_orcd.engine.sequence import Sequence
from worker_orcd.engine.warm_up import warm_up
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import (
    AuditFault,
    EndOfRun,
    FromEngine,
    Ping,
    Pong,
    Progress,
    Run,
    Step,
    Stop,
    Stopped,
)


class BeyondRepair(Exception):
    """The model's memory does not do what it is asked; only a new process helps."""


class EngineLoop:
    """Owns the model. `turn` is called again and again by the process, or step by step by a test."""

    def __init__(
        self,
        model: Model,
        interrupt: InterruptByte,
        drain: Callable[[], Iterable[Run | Stop | Ping]],
        send: Callable[[FromEngine], None],
        narrator: narration.Narrator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._interrupt = interrupt
        self._drain = drain
        self._send = send
        self._narrator = narrator
        self._clock = clock
        self._sequences: dict[int, Sequence] = {}
        self._free_ids = list(range(model.facts.sequences))
        self._quarantined: set[int] = set()
        """Free ids whose cells could not be freed. They are tried again with every audit."""
        self._rollback = Rollback(model)
        self._cost = CostEstimate()
        self._recovery = Recovery()
        self._planned: Plan | None = None
        """The next step, if no message changes what it should be."""
        self._last_holder: dict[int, int] = {}
        """Which run a sequence id was freed by last."""

    def warm_up(self, progressed: Callable[[], None] = lambda: None) -> None:
        """Learn what steps cost before there is a job. `progressed` is called after each step."""
        warm_up(self._model, self._cost, self._clock, progressed)

    def turn(self) -> bool:
        """Look at messages, then run one step. False if there was nothing to compute.

        Raises:
            BeyondRepair: the books and the model's memory cannot be made to agree.
        """
        self._interrupt.clear()
        for message in self._drain():
            self._planned = None
            match message:
                case Run():
                    self._take(message)
                case Stop():
                    self._stop(message.run)
                case Ping():
                    self._drop_strangers(message.runs)
                    self._send(Pong())
        if not self._sequences:
            self._audit()
            return False
        self._step()
        return True

    # Sequences.

    def _take(self, run: Run) -> None:
        if not self._free_ids:
            raise BeyondRepair("every sequence id is in use or in quarantine")
        sequence = Sequence(run, heapq.heappop(self._free_ids), self._model)
        self._sequences[run.run] = sequence
        self._narrator.tell(
            narration.ExecuteStart(
                job_id=run.job_id,
                prompt_chars=run.prompt_chars,
                prompt_sha256=run.prompt_sha256,
                prompt_tokens=len(run.prompt),
                max_tokens=run.max_tokens,
                seed=run.sampling.seed,
            ),
            correlation_id=run.correlation_id,
            owner=run.owner,
        )

    def _stop(self, run: int) -> None:
        """Free a run and say so. The answer comes even for a run that is not here: it holds nothing, either."""
        stopped_at = self._clock()
        sequence = self._sequences.get(run)
        before, after = self._free(sequence) if sequence else (0, 0)
        freed_at = self._clock()
        cells, sequences = self._audit()
        now = self._clock()
        if sequence is not None and after:
            # What would not be freed, the audit has tried again.
            after, freed_at = self._model.cells(sequence.id), now
        self._send(
            Stopped(
                run=run,
                stopped_ago_ms=(now - stopped_at) * 1000,
                freed_ago_ms=None if after else (now - freed_at) * 1000,
                cells_before=before,
                cells_after=after,
                prompt_processed=sequence.prompt_processed if sequence else 0,
                cells_used=cells,
                sequences_used=sequences,
            )
        )

    def _free(self, sequence: Sequence) -> tuple[int, int]:
        """Free all that a run holds. Returns its cells before and after, by the model's own count."""
        del self._sequences[sequence.run.run]
        sequence.sampler.close()
        before = self._model.cells(sequence.id)
        self._model.trim(sequence.id, 0)
        after = self._model.cells(sequence.id)
        self._last_holder[sequence.id] = sequence.run.run
        hole = sequence.id
        if self._model.dense_ids and self._sequences and after == 0:
            last = max(self._sequences.values(), key=lambda other: other.id)
            if last.id > hole:
                self._model.move(last.id, hole)
                last.id, hole = hole, last.id
        heapq.heappush(self._free_ids, hole)
        return before, after

    # The audit.

    def _audit(self) -> tuple[int, int]:
        """Compare the books with the model's own count of every sequence id; tell and repair what differs.

        This is done after every step and every stop, and with every ping while there is nothing to compute.

        Returns:
            Cells and sequences in use, by the model's count.
        """
        for sequence in [id_ for id_ in self._quarantined if self._trimmed(id_, 0)]:
            self._quarantined.remove(sequence)
            heapq.heappush(self._free_ids, sequence)
        counted = self._counted()
        expected = {sequence.id: sequence.computed for sequence in self._sequences.values()}
        found = [d for d in differences(expected, counted) if d.sequence not in self._quarantined]
        if found:
            for difference in found:
                self._repair(difference)
            counted = self._counted()
        return sum(counted), sum(cells > 0 for cells in counted)

    def _counted(self) -> list[int]:
        return [self._model.cells(sequence) for sequence in range(self._model.facts.sequences)]

    def _repair(self, difference: Difference) -> None:
        """Make one sequence id hold what it should: trim it, read its run again, or use the id no more."""
        holder = next((s for s in self._sequences.values() if s.id == difference.sequence), None)
        # Only plain attention is sure to be right behind its first tokens when what follows them is trimmed.
        trimmable = holder is None or self._model.memory.kind == "attention"
        if not (trimmable and self._trimmed(difference.sequence, difference.expected)):
            if holder is not None:
                self._read_again(holder)
            else:
                self._free_ids.remove(difference.sequence)
                heapq.heapify(self._free_ids)
                self._quarantined.add(difference.sequence)
        self._send(
            AuditFault(
                holder.run.run if holder else self._last_holder.get(difference.sequence),
                f"sequence {difference.sequence} held {difference.counted} KV cells instead of {difference.expected}",
                repaired=difference.sequence not in self._quarantined,
            )
        )

    def _trimmed(self, sequence: int, length: int) -> bool:
        self._model.trim(sequence, length)
        return self._model.cells(sequence) == length

    def _read_again(self, sequence: Sequence) -> None:
        """Its cells are not what they should be: compute all of them anew, with another id if this one stays dirty."""
        sequence.computed = 0
        self._rollback.forget(sequence)
        if self._trimmed(sequence.id, 0):
            return
        if not self._free_ids:
            raise BeyondRepair(f"sequence {sequence.id} cannot be freed and no other is free")
        self._quarantined.add(sequence.id)
        sequence.id = heapq.heappop(self._free_ids)

    def _drop_strangers(self, runs: tuple[int, ...]) -> None:
        """Free what the front does not know of. A run leaves its books only by what was said here, so there is none."""
        for run in self._sequences.keys() - set(runs):
            self._free(self._sequences[run])
            self._send(AuditFault(run, f"run {run} was computed for nobody", repaired=True))

    # Steps.

    def _step(self) -> None:
        plan, preempted = self._plan_within_cells()
        started = self._clock()
        result = self._compute(plan, armed=self._recovery.arming())
        self._learn(plan, result, (self._clock() - started) * 1000)
        # Ids move when runs are freed, so only now, behind the last part.
        ends = [self._end(end) for end in result.ends]
        if result.outcome not in (Outcome.DONE, Outcome.ABORTED):
            failures, put_out = self._fail(result)
            ends += failures
            preempted += put_out
        cells, sequences = self._audit()
        self._planned = self._plan()
        self._send(
            Step(
                duration_ms=(self._clock() - started) * 1000,
                tokens=tuple(result.tokens),
                progress=tuple(result.progress),
                ended=tuple(ends),
                cells_used=cells,
                sequences_used=sequences,
                next_ms=self.next_ms,
                outcome=REPORTED[result.outcome],
                preempted=tuple(preempted),
            )
        )

    @property
    def next_ms(self) -> float:
        """How long the next step is predicted to take; without a run, the first step of a long prompt."""
        planned = self._planned if self._sequences else None
        return (planned or self._plan_of([Pending(0, MAX_ROWS, 0, decoding=False)])).predicted_ms

    def _learn(self, plan: Plan, result: StepResult, took_ms: float) -> None:
        """Learn what steps cost from whole ones; and from all of them, what the next ones have to be like."""
        undone = {*result.undone, *result.skipped}
        computed = {share.key for share in plan.shares} - undone
        if result.outcome is Outcome.DONE:
            self._cost.learn(plan, took_ms)
            self._recovery.done(computed)
        elif result.outcome is Outcome.ABORTED:
            self._cost.aborted(plan, took_ms)
            self._recovery.aborted(undone, computed)

    def _plan_within_cells(self) -> tuple[Plan, list[int]]:
        """Plan a step; when the cells do not last for it, put out the youngest until they do. The oldest goes on."""
        preempted: list[int] = []
        plan = self._planned or self._plan()
        while len(self._sequences) > 1:
            held = sum(sequence.computed for sequence in self._sequences.values())
            if held + plan.decode_rows + plan.prefill_rows <= self._model.facts.cells:
                break
            preempted.append(self._preempt())
            plan = self._plan()
        return plan, preempted

    def _plan(self) -> Plan:
        """The next step: of all runs, or of those whose last step was aborted."""
        owed = self._recovery.owed(self._sequences)
        return self._plan_of([s.pending for s in self._sequences.values() if not owed or s.run.run in owed])

    def _plan_of(self, pending: list[Pending]) -> Plan:
        return plan_step(
            pending,
            self._cost,
            pace=self._recovery.pace(),
            abortable=self._model.abortable,
            layers=self._model.layers,
        )

    def _preempt(self) -> int:
        """Put the youngest run out. The front runs it again when it fits."""
        youngest = self._sequences[max(self._sequences)]
        self._free(youngest)
        return youngest.run.run

    def _compute(self, plan: Plan, *, armed: Arming) -> StepResult:
        """Compute a step part by part. Each part is sampled before the next one overwrites its logits.

        The first part that is not done is undone, and those behind it are skipped; what earlier parts brought stays.
        """
        result = StepResult()
        parts = parts_of(plan, self._sequences, separate_streams=self._model.separate_streams)
        for number, part in enumerate(parts):
            if armed and self._model.abortable:
                self._rollback.prepare(self._sequences.values())
            result.outcome = self._model.decode(part.batch, armed=armed)
            if result.outcome is not Outcome.DONE:
                self._undo(part, result.outcome)
                result.undone, result.skipped = runs_of([part]), runs_of(parts[number + 1 :])
                break
            self._harvest(part, result)
        return result

    def _harvest(self, part: Part, result: StepResult) -> None:
        """Note what a part brought and draw the next tokens of its runs."""
        for share in part.shares:
            sequence = self._sequences[share.key]
            before = sequence.prompt_processed
            sequence.computed += share.rows
            if sequence.prompt_processed > before:
                result.progress.append(Progress(share.key, sequence.prompt_processed))
            if share.key in part.last_rows:
                new, end = sequence.draw(part.last_rows[share.key], self._model)
                result.tokens += new
                if end is not None:
                    result.ends.append(end)

    def _end(self, end: EndOfRun) -> EndOfRun:
        before, after = self._free(self._sequences[end.run])
        return msgspec.structs.replace(end, cells_before=before, cells_after=after)

    def _undo(self, part: Part, outcome: Outcome) -> None:
        """Roll a part back that was not done. A sequence whose memory is lost is computed again; no run ends."""
        lost = self._rollback.undo(self._sequences.values(), set(runs_of([part])), outcome)
        for sequence in lost:
            self._read_again(sequence)

    def _fail(self, result: StepResult) -> tuple[list[EndOfRun], list[int]]:
        """Handle a part that was neither done nor aborted.

        Returns:
            The ends of the runs that fail with it, and the runs that are requeued.
        """
        separate = self._model.separate_streams
        if result.outcome is Outcome.NO_ROOM and len(self._sequences) > 1 and not separate:
            return [], [self._preempt()]
        if result.outcome is Outcome.NO_ROOM:
            # With separate streams another run's cells are of no use to this one.
            ends = [self._failed(key, "INTERNAL", "no free KV cells") for key in result.undone]
        else:
            ends = [self._device_failed(key, result.outcome) for key in result.undone]
        requeued: list[int] = []
        if separate:
            # llama.cpp may have left search heads wrong (see `parts`). Only a cache that holds nothing can be cleared.
            while self._sequences:
                requeued.append(self._preempt())
            self._model.clear()
        return ends, requeued

    def _device_failed(self, key: int, outcome: Outcome) -> EndOfRun:
        device = self._model.facts.device
        if device == "cpu":
            return self._failed(key, "INTERNAL", "the computation failed")
        if outcome is Outcome.NO_MEMORY:
            return self._failed(key, "VRAM_OOM", f"{device} has no memory left for the computation")
        return self._failed(key, "CUDA_ERROR", f"{device} failed during the computation")

    def _failed(self, key: int, code: str, message: str) -> EndOfRun:
        """End a run by an error. The front narrates it, as every job's end."""
        return self._end(EndOfRun(key, None, 0, 0, code, message))
