"""The core with a model of an engine beside it, and what clients have received: the state of the state machine."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from tests.fakes import at, snapshot_of
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Begin, Drop, Effect, Ended, SendStop, Submit
from worker_orcd.jobs.events import Event
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import Capacity
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.request import Ceilings

IDS = ("job-1", "job-10", "job-2", "job", "JOB-1")
CAPACITY = Capacity(cells=60, cells_per_job=30, sequences=3)
MAX_QUEUE = 6
MEMORY_SEC = 5.0
WHOLE_STREAM = re.compile(r"started (progress )*(token )*(end|error) |error ")
BEGINNING = re.compile(r"(started (progress )*(token )*)?")
LETTER = st.sampled_from(["", "a", "漢"])
ANY = st.integers(0, 1_000_000)


@dataclass
class Seen:
    """What clients have seen of a job so far."""

    job: Job
    events: list[Event] = field(default_factory=list)
    reported: str = ""
    """Text of the tokens that became events."""
    held: str = ""
    """Text that the engine holds back after these tokens."""
    over: dict[str, object] | None = None
    """Its record at its end, which must not change any more."""


@dataclass
class ModelEngine:
    """What the engine holds, according to the effects."""

    to_prepare: list[int] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    """The runs among these that were dropped."""
    kept: set[int] = field(default_factory=set)
    """Accepted runs that are to begin later."""
    waits: set[int] = field(default_factory=set)
    """Runs that are to begin, or were preempted, and have no slot."""
    holds: set[int] = field(default_factory=set)
    """Runs that have a slot."""
    to_confirm: list[int] = field(default_factory=list)


class CoreState(RuleBasedStateMachine):
    """The core, an engine that follows its effects, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Dispatcher(Ceilings(max_tokens_out=20, inference_timeout_sec=50.0), MAX_QUEUE, MEMORY_SEC)
        self.engine: ModelEngine | None = None
        self.seconds = 0.0
        self.seen: dict[int, Seen] = {}
        self.ended: list[int] = []
        self.given_up: set[int] = set()
        self.cancels: dict[str, float] = {}
        """Cancels that arrived before their job, and when."""
        self.reached: dict[str, float] = {}
        """Ids of jobs that a client's cancel has reached, and when."""
        self.refused: dict[str, float] = {}
        """Ids whose latest request was refused, and when: a cancel that follows is for that request."""
        self.written_off = False
        """Whether a stop was given up. Such an engine gets nothing new, and will be killed."""

    # Bookkeeping.

    def now(self) -> Timestamp:
        """Every event has a time of its own."""
        self.seconds += 0.001
        return at(self.seconds)

    def freed(self) -> Release:
        """The engine's confirmation."""
        return Release(self.seconds, self.seconds, cells_before=3)

    def live_jobs(self) -> list[Job]:
        """Jobs without a terminal event."""
        return [seen.job for seen in self.seen.values() if seen.job.live]

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Carry out the core's effects, as the worker does, and check that they are allowed."""
        for effect in effects:
            run = effect.job.run
            if isinstance(effect, Ended):
                assert run not in self.ended, "ended twice"
                assert effect.job.terminal is not None
                holds = self.engine is not None and run in self.engine.holds | self.engine.waits
                assert not holds or run in self.given_up, "ended before the engine's confirmation (G4)"
                self.ended.append(run)
                continue
            assert self.engine is not None, "an order without an engine"
            if isinstance(effect, Drop):
                assert (run in self.engine.to_prepare) != (run in self.engine.kept), "it has nothing to drop"
                assert run not in self.engine.dropped, "dropped twice"
                if run in self.engine.to_prepare:
                    self.engine.dropped.add(run)
                self.engine.kept.discard(run)
                continue
            assert effect.job.live
            match effect:
                case Submit() if effect.job.prompt_tokens is not None:
                    assert run not in self.engine.kept | self.engine.waits | self.engine.holds, (
                        "submitted twice"
                    )
                    self.engine.kept.add(run)
                case Submit():
                    self.engine.to_prepare.append(run)
                case Begin():
                    assert not effect.job.stop, "handed over despite a stop request"
                    self.engine.kept.remove(run)
                    self.engine.waits.add(run)
                    assert effect.job.prompt_tokens is not None
                case SendStop():
                    assert run in self.engine.holds | self.engine.waits, "stopped what it does not have"
                    assert run not in self.engine.to_confirm, "asked twice"
                    self.engine.to_confirm.append(run)

    def kv_usage(self) -> object:
        """The whole state, as a value."""
        queue = self.core.queue
        return (
            [snapshot_of(seen.job) for seen in self.seen.values()],
            [job.run for job in self.core.tracker],
            self.core.tracker.records(),
            (list(queue._waiting), list(queue._in_engine)),
        )

    def pick(self, runs: Iterable[int], which: int) -> int | None:
        """One of these runs, or None if there are none."""
        candidates = sorted(runs)
        return candidates[which % len(candidates)] if candidates else None
