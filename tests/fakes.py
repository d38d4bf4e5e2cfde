"""Stand-ins and builders that several test modules share."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

from tests.hand_side import HandSide
from tests.loop_reports import LoopReports, run_of_tokens
from worker_orcd.engine.loop import EngineLoop
from worker_orcd.engine.model import AbortMode, Batch, Memory, Outcome, Sampler
from worker_orcd.engine.prefix_store import PrefixStore
from worker_orcd.engine.run import Run
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Effect
from worker_orcd.jobs.events import EndedEvents
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.request import ExecuteRequest, JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.narration import Narrator
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import FromEngine, Load, Ping, Stop as StopRun
from worker_orcd.sampling import SamplingParams
from worker_orcd.testing.scripted import FIRST_WORD, ScriptedModel, constrained

UNIX_ZERO = 1_700_000_000.0
"""The date at second 0 of the tests' monotonic clock: 2023-11-14T22:13:20Z."""


def at(seconds: float) -> Timestamp:
    """The timestamp at this many seconds of the monotonic clock."""
    return Timestamp(seconds, UNIX_ZERO + seconds)


def execute(job_id: str = "job-1", **given: Any) -> ExecuteRequest:
    """A valid request."""
    return ExecuteRequest(**{"job_id": job_id, "prompt": "Say something.", "seed": 7, **given})


def queued_job(job_id: str = "job-1", *, run: int = 1, timeout_sec: float = 300.0, **given: Any) -> Job:
    """A job accepted at second 0."""
    return Job(
        request=execute(job_id, **given),
        run=run,
        incarnation=f"0-{run}",
        correlation_id=f"cor-{run}",
        seed=7,
        timeout_sec=timeout_sec,
        accepted=at(0),
    )


def running_job(job_id: str = "job-1", *, run: int = 1, **given: Any) -> Job:
    """A job of three prompt tokens, that has a slot since second 1."""
    job = queued_job(job_id, run=run, **given)
    job.measured((1, 2, 3), max_tokens=8)
    job.handed_over()
    job.started(at(1), "a-model")
    return job


def submit(core: Dispatcher, request: JobRequest, *arguments: Any, **more: Any) -> tuple[Job, list[Effect]]:
    """Submit a client's request for one job; otherwise as the dispatcher."""
    submitted = core.submit([request], *arguments, **more)
    return submitted.jobs[0], submitted.effects


def stop_request(
    reason: StopReason = StopReason.CLIENT, seconds: float = 2.0, correlation_id: str | None = "cor-cancel"
) -> StopRequest:
    """A stop request, accepted at that second."""
    return StopRequest(reason, seconds, correlation_id)


def freed_at(seconds: float, cells_before: int = 5) -> Release:
    """An engine's report that everything was freed at that second."""
    return Release(stopped_at=seconds, freed_at=seconds, cells_before=cells_before)


def snapshot_of(job: Job) -> dict[str, object]:
    """The state of a job as values, to compare later."""
    kv_usage: dict[str, object] = {}
    for field in fields(job):
        value = getattr(job, field.name)
        kv_usage[field.name] = list(value) if isinstance(value, list | EndedEvents) else value
    return kv_usage


# An engine's loop, turned by hand.

QUICK = '{"token_ms": 0, "row_ms": 0}'
"""A script that takes no real time. The hand-turned model's time is the clock that the test holds."""


def run_message(run: int, prompt: str = "", **given: Any) -> Run:
    """Generate; `prompt` follows a script that takes no time, unless it is a script itself."""
    text = prompt if prompt.startswith("{") else QUICK + prompt
    return run_of_tokens(run, tuple(text.encode()), **{"prompt_chars": len(text)} | given)


class HandClock:
    """A clock that the test advances. Seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def pass_to(self, now: float) -> None:
        """Advance it."""
        self.now = now


class HandTimer:
    """A timer of `HandTimers`."""

    def __init__(self, due: float, act: Callable[[], None]) -> None:
        self.due = due
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        """Cancel the timer."""
        self.act = None


class HandTimers:
    """Timers that fire when the test moves time past them. Seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._timers: list[HandTimer] = []

    def call_later(self, delay: float, act: Callable[[], None]) -> HandTimer:
        """Like an event loop's `call_later`."""
        timer = HandTimer(self.now + delay, act)
        self._timers.append(timer)
        return timer

    def run_until(self, now: float) -> None:
        """Move time and fire the timers that are due, in order."""
        while True:
            self._timers = [timer for timer in self._timers if timer.act is not None]
            due = min(self._timers, key=lambda timer: timer.due, default=None)
            if due is None or due.due > now + 1e-9:
                break
            self._timers.remove(due)
            self.now = max(self.now, due.due)
            if due.act is not None:
                due.act()
        self.now = max(self.now, now)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A step that the model was asked to compute."""

    batch: Batch
    abort_mode: AbortMode
    outcome: Outcome

    def rows_of(self, sequence: int) -> int:
        """The number of rows of the sequence with this id."""
        return self.batch.sequences.count(sequence)


class CellSampler:
    """Draws tokens that depend on every cell behind the row, so a cell out of place shows in the text."""

    def __init__(self, model: "HandModel", seed: int) -> None:
        self._model = model
        self._seed = seed

    def draw(self, row: int, index: int, allowed: bytes | None = None) -> int:
        """Token number `index`."""
        seen = (self._seed, index, self._model.behind_row[row])
        digest = blake2b(repr(seen).encode(), digest_size=4).digest()
        return constrained(FIRST_WORD + int.from_bytes(digest, "little") % 40_000, allowed)

    def close(self) -> None:
        """Count the call: each sampler must be closed once."""
        self._model.samplers_open -= 1


class HandModel(ScriptedModel):
    """The scripted model with its strict count of cells, on a clock held by the test.

    Scripts with a `text` or a fault are followed; all others get tokens that depend on their cells.
    """

    def __init__(self, load: Load, interrupt: InterruptByte, clock: HandClock) -> None:
        super().__init__(load, interrupt, lambda percent: None)
        self.clock = clock
        self.byte = interrupt
        self.decode_ms = 5.0
        self.prefill_row_ms = 1.0
        self.during_step: Callable[[], None] = lambda: None
        """Called while each step is being computed."""
        self.each_ms: Callable[[], None] | None = None
        """Called after each millisecond of a step; an interrupt then ends it there, and not at its end."""
        self.next_outcome: Outcome | None = None
        """How the next step ends, if not as the script says."""
        self.steps: list[Decoded] = []
        self.behind_row: list[tuple[int, ...]] = []
        self.samplers_open = 0
        self.saves: list[int] = []
        """Sequence ids that were saved, in order."""
        self.restores_fail = False
        self.moves_fail = False
        self._stale: set[int] = set()
        """Sequence ids without cells whose state an aborted step should have zeroed, and has not."""
        self.side: HandSide | None = None
        if load.side_cells:
            self.side = HandSide(self, load.side_cells, interrupt)
            self.side.now, self.side.pass_to = clock, clock.pass_to

    def sampler(self, sampling: SamplingParams, history: list[int]) -> Sampler:
        """The script's own, if it says something."""
        head = bytes(token for token in history[:400] if token < 256)
        if b'"text"' in head:
            return super().sampler(sampling, history)
        self.samplers_open += 1
        return CellSampler(self, sampling.seed or 0)

    def move(self, source: int, target: int) -> bool:
        """Give a sequence another id, also before its first cell is written, unless the test makes that fail."""
        if self.moves_fail:
            return False
        self._cells.setdefault(source, [])
        return super().move(source, target)

    def trim(self, sequence: int, length: int) -> bool:
        """Cut a sequence back; a recurrent state can only be dropped."""
        if not self.memory.trims and 0 < length < self.cells(sequence):
            return False
        if self.side is not None and self.is_aside(sequence):
            assert not self.is_computing(sequence)
            self.side.sequences -= {sequence} if length == 0 else set()
        return super().trim(sequence, length)

    def side_pool(self) -> HandSide | None:
        """There at once, if the test wants one."""
        return self.side

    def is_aside(self, sequence: int) -> bool:
        """As the side pool says."""
        return self.side is not None and sequence in self.side.sequences

    def is_computing(self, sequence: int) -> bool:
        """As the side pool says."""
        return self.side is not None and sequence in self.side.in_progress

    def move_aside(self, sequence: int) -> bool:
        """Unless the test makes that fail. The sequence gets cells of its own, as by copying."""
        if self.side is None or not self.side.take(sequence):
            return False
        self._places[sequence] = [next(self._place_numbers) for _ in self._cells.setdefault(sequence, [])]
        return True

    def move_back(self, sequence: int) -> bool:
        """Unless the test makes that fail."""
        return self.side is not None and self.side.release(sequence)

    def copy(self, source: int, target: int, length: int) -> None:
        """Only within the pool."""
        assert not self.is_aside(source)
        super().copy(source, target, length)

    def save(self, sequence: int, into: bytearray | None = None) -> bytearray:
        """Note it."""
        assert not self.is_computing(sequence)
        self.saves.append(sequence)
        return super().save(sequence, into)

    def restore(self, sequence: int, saved: bytearray) -> bool:
        """Restore the state, unless the test makes that fail."""
        if self.restores_fail:
            return False
        self._stale.discard(sequence)
        return super().restore(sequence, saved)

    def clear(self) -> None:
        """Zero all states."""
        self._stale.clear()
        super().clear()

    def _spoil(self) -> None:
        """Spoil all recurrent states, as a decode does that did not complete, whichever sequences were in it."""
        for cells in self._cells.values():
            cells[:] = [cell + 1 for cell in cells]
        self._stale = {id_ for id_ in range(self.sequence_ids) if not self._cells.get(id_)}

    def disturb(self, sequence: int, by: int) -> None:
        """Add cells to a sequence, or remove them if negative, without the ledger's knowledge."""
        cells = self._cells[sequence]
        self._places[sequence] = self._places[sequence][: len(cells) + min(by, 0)]
        self._cells[sequence] = cells + [0] * by if by > 0 else cells[:by]

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Advance the clock by the step's time. It ends as aborted if an interrupt byte stops it meanwhile."""
        assert list(batch.sequences) == sorted(batch.sequences), "rows are not sorted by sequence id"
        assert not any(map(self.is_aside, batch.sequences)), "rows of a sequence that is aside"
        self.during_step()
        decoding = {s for s in batch.sequences if batch.sequences.count(s) == 1 and self.cells(s) > 0}
        prefill_rows = len(batch.sequences) - len(decoding)
        aborted = self._take(self.decode_ms * len(decoding) + self.prefill_row_ms * prefill_rows, abort_mode)
        if self.next_outcome is Outcome.NO_ROOM:
            outcome = Outcome.NO_ROOM
        else:
            outcome = super().decode(batch, abort_mode=AbortMode.NONE)
            if self.next_outcome is not None:
                outcome = self.next_outcome
            elif aborted:
                outcome = Outcome.ABORTED
        self.next_outcome = None
        if outcome not in (Outcome.DONE, Outcome.NO_ROOM) and not self.memory.trims:
            self._spoil()
        places = zip(batch.positions, batch.sequences, strict=True)
        self.behind_row = [
            (-1,) * (s in self._stale) + tuple(self._cells.get(s, [])[: position + 1])
            for position, s in places
        ]
        self.steps.append(Decoded(batch, abort_mode, outcome))
        return outcome

    def _take(self, ms: float, abort_mode: AbortMode) -> bool:
        """Advance the clock. Returns whether an interrupt ends the step."""
        end = self.clock.now + ms / 1000
        while self.each_ms is not None and self.clock.now < end and not self._aborts(abort_mode):
            self.clock.now = min(end, self.clock.now + 0.001)
            self.each_ms()
        if self.each_ms is None:
            self.clock.now = end
        return self._aborts(abort_mode)


class HandLoop(LoopReports):
    """An engine's loop with its model, its inbox and all that it sent."""

    def __init__(  # noqa: PLR0913  # all that an engine is made of
        self,
        *,
        parallel: int = 4,
        cells: int = 4096,
        exact: bool = False,
        recurrent: bool = False,
        window: int | None = None,
        prefix_cache: bool = True,
        store: int | None = None,
        side_cells: int = 0,
    ) -> None:
        super().__init__()
        self.byte = InterruptByte.create()
        self.clock = HandClock()
        load = Load(
            "scripted",
            "worker",
            None,
            parallel,
            cells,
            exact,
            1,
            "json",
            prefix_cache=prefix_cache,
            side_cells=side_cells,
        )
        self.model: HandModel = HandModel(load, self.byte, self.clock)
        if recurrent:
            self.model.memory = Memory("recurrent", trims=False)
        if window is not None:
            self.model.memory = Memory("sliding window", trims=True, window=window)
        self.after_drain: Callable[[], None] = lambda: None
        self.on_send: Callable[[FromEngine], None] = lambda message: None
        narrator = Narrator.configure("worker", process="engine", log_format="json", stream=io.StringIO())
        self.store = None if store is None else PrefixStore(store, b"scripted")
        self.loop = EngineLoop(
            self.model, self.byte, self._drain, self._send, narrator, clock=self.clock, store=self.store
        )

    def _send(self, message: FromEngine) -> None:
        self.on_send(message)
        self.sent.append(message)

    def _drain(self) -> Iterable[Run | StopRun | Ping]:
        messages, self.inbox = self.inbox, []
        self.after_drain()
        return messages

    def post(self, *messages: Run | StopRun | Ping, interrupt: bool = True) -> None:
        """Put messages into the socket; and set the byte for a `Stop`, as a front does if it is not confirmed."""
        for message in messages:
            self.inbox.append(message)
            if isinstance(message, StopRun) and interrupt:
                self.byte.set()

    def abort_each_second_step(self, aborts: int) -> None:
        """Take twice so many turns."""
        for _ in range(aborts):
            self.model.during_step = self.byte.set
            self.turn()
            self.model.during_step = lambda: None
            self.turn()
        assert any(step.aborted for step in self.steps)

    def turn(self, times: int = 1) -> None:
        """Make this many turns, each of which must have something to compute."""
        for _ in range(times):
            assert self.loop.turn(), "there was nothing to compute"

    def turn_idle(self) -> bool:
        """Make one turn. Returns whether it had nothing to compute."""
        return not self.loop.turn()

    def warm_up(self) -> None:
        """Warm up and measure, as an engine process does before the first job."""
        self.loop.warm_up.first_rows()
        self.loop.warm_up.measure()

    @property
    def next_ms(self) -> float:
        """How long the next step is predicted to take."""
        return self.loop.next_ms

    def close(self) -> None:
        """Unmap the byte."""
        self.byte.close()

    # What it said.

    def text(self, run: int) -> str:
        """The text reported for a run."""
        return "".join(out.text for step in self.steps for out in step.tokens if out.run == run)


MakeLoop = Callable[..., HandLoop]
"""Makes a `HandLoop` of these keyword arguments."""
