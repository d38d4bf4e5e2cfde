"""Any sequence of events against the pure core, with a model of an engine beside it (G2, G3, G4, G8).

The model engine knows only the effects. It answers each `Submit` and each `SendStop` some time later, and
continues generating until it has answered: so every crossing of a cancel with an end, a failure, a death or another
cancel is tried.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.fakes import at, execute, snapshot_of, submit
from tests.lanes import examples
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.dispatcher import Dispatcher
from worker_orcd.jobs.effects import Begin, Drop, Effect, Ended, SendStop, Submit
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End, Error, Event, Started, Token
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.position import Position
from worker_orcd.jobs.queue import AHEAD, Capacity, ReadyEngine
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.refused_requests import REFUSED_KEPT_SEC
from worker_orcd.jobs.request import Ceilings
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import TargetState
from worker_orcd.jobs.suspects import MAX_DEATHS, SUSPECT_DEATHS

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


class Core(RuleBasedStateMachine):
    """Clients, an engine and time act at random."""

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

    # Clients.

    @initialize(ready=st.booleans())
    def begin(self, ready: bool) -> None:
        """With an engine, or while it is still loading."""
        if ready:
            self.engine_becomes_ready()

    @rule(
        job_id=st.sampled_from(IDS),
        max_tokens=st.none() | st.integers(1, 20),
        timeout_ms=st.none() | st.integers(1, 60_000),
        group=st.sampled_from([None, "g", "g1"]),
        may_retry=st.booleans(),
        progress=st.booleans(),
        supersedes=st.sampled_from([None, "k", "k1"]),
        priority=st.sampled_from([0, 0, -1, 3, 100]),
    )
    def submit(  # noqa: PLR0913  # what a request may say
        self,
        job_id: str,
        max_tokens: int | None,
        timeout_ms: int | None,
        group: str | None,
        may_retry: bool,
        progress: bool,
        supersedes: str | None,
        priority: int,
    ) -> None:
        """A client submits a job, possibly with an id that was used before, possibly as a retry."""
        now = self.now()
        retry_of = self.core.cancelled_lately(job_id, now) if may_retry else None
        reached = self.reached.get(job_id, -100.0)
        assert may_retry is False or (retry_of is not None) == (now.mono - reached <= MEMORY_SEC)
        in_use = self.core.tracker.live(job_id) is not None
        older = [job for job in self.live_jobs() if job.request.supersedes == supersedes and not job.stop]
        older = older if supersedes else []
        stops = {run: seen.job.stop for run, seen in self.seen.items() if seen.job not in older}
        queued = sum(job.state in (State.QUEUED, State.WAITING) for job in older)
        full = len(self.core.queue) - queued >= MAX_QUEUE
        before = self.kv_usage()
        request = execute(
            job_id,
            max_tokens=max_tokens,
            timeout_ms=timeout_ms,
            group=group,
            progress=progress,
            supersedes=supersedes,
            priority=priority,
        )
        try:
            job, effects = submit(self.core, request, f"cor-{len(self.seen)}", now, retry_of=retry_of)
        except JobError as refused:
            expected = (
                ErrorCode.DRAINING
                if self.core.draining
                else ErrorCode.JOB_ID_IN_USE
                if in_use
                else ErrorCode.QUEUE_FULL
            )
            assert refused.code is expected  # noqa: PT017  # Being taken is as right as being refused.
            assert self.kv_usage() == before
            if expected is not ErrorCode.JOB_ID_IN_USE:
                self.refused[job_id] = now.mono
            return
        assert (self.core.draining, in_use) == (False, False)
        assert {run: self.seen[run].job.stop for run in stops} == stops
        over = retry_of is not None or now.mono - self.cancels.get(job_id, -100.0) <= MEMORY_SEC
        for old in older:
            assert bool(old.stop) != over, "a job that has ended before it arrives supersedes nothing"
            if old.stop is not None:
                assert old.stop.reason is StopReason.SUPERSEDED
                assert old.stop.superseded_by == job_id
        if retry_of is not None:
            assert [event.name for event in job.events] == ["error"], "the retry of a cancelled job runs"
            assert effects[0] == Ended(job)
            self.seen[job.run] = Seen(job)
            self.refused.pop(job_id, None)
            self.carry_out(effects)
            return
        self.reached.pop(job_id, None)
        assert not full or job.stop, "a full queue accepts only jobs that have ended on arrival"
        assert job.run not in self.seen, "an incarnation has its own run"
        assert job.incarnation not in {seen.job.incarnation for seen in self.seen.values()}
        self.seen[job.run] = Seen(job)
        self.refused.pop(job_id, None)
        self.positions_are_of_one_job(job)
        self.carry_out(effects)
        cancelled_at = self.cancels.pop(job_id, -100.0)
        if self.seconds - cancelled_at <= MEMORY_SEC:
            assert [event.name for event in job.events] == ["error"], "a cancel that was here first wins (G8)"
            assert job.stop is not None
            self.reached[job_id] = cancelled_at
        else:
            assert not job.stop, "a cancel of an earlier use has reached a later one (G8)"

    def positions_are_of_one_job(self, job: Job) -> None:
        """No position in the events of an earlier job continues this one's, and its own do."""
        for seen in self.seen.values():
            position = Position(seen.job.incarnation, len(seen.job.events))
            assert Position.parse(str(position)) == position
            if seen.job is job:
                assert job.place_after(position) == position.number + 1
            else:
                with pytest.raises(JobError):
                    job.place_after(position)

    @rule(job_id=st.sampled_from([*IDS, "never-used"]), repeat=st.integers(0, 3))
    def cancel(self, job_id: str, repeat: int) -> None:
        """A client cancels, perhaps again and again: the first decides, the others change nothing (G3)."""
        self.stop(job_id, StopReason.CLIENT)
        before = self.kv_usage()
        for n in range(repeat):
            stop = StopRequest(StopReason.CLIENT, self.now().mono, f"again-{n}")
            target, effects = self.core.cancel(job_id, stop, self.now())
            assert effects == []
            assert target.state is not TargetState.LIVE
            assert self.kv_usage() == before

    @rule(job_id=st.sampled_from(IDS))
    def a_bad_request_is_refused(self, job_id: str) -> None:
        """The API refuses a request before it reaches the core: a field is wrong, or the body too large."""
        before = self.kv_usage()
        self.core.refused(job_id, self.now())
        assert self.kv_usage() == before
        self.refused[job_id] = self.seconds

    def stop(self, job_id: str, reason: StopReason) -> None:
        """Stop a job for this reason; no other job is stopped."""
        job = self.core.tracker.live(job_id)
        state = None if job is None else job.state
        others = {
            run: (seen.job.stop, seen.job.terminal) for run, seen in self.seen.items() if seen.job is not job
        }
        stop = StopRequest(reason, self.now().mono, "cor-stop")
        if job is None or reason is StopReason.CLIENT:
            (known, found), effects = self.core.cancel(job_id, stop, self.now())
        else:
            (known, found), effects = self.core.stop(job, stop, self.now())
        assert found is job
        self.carry_out(effects)
        match state:
            case None:
                assert known in (TargetState.UNKNOWN, TargetState.FINISHED)
                refused_at = self.refused.get(job_id, float("-inf"))
                for_refused = stop.accepted_at - refused_at <= REFUSED_KEPT_SEC
                if known is TargetState.UNKNOWN and not for_refused:
                    self.remember(job_id, stop.accepted_at)
                assert effects == []
            case State.STOPPING:
                assert known is TargetState.STOPPING
                assert effects == []
            case State.QUEUED:
                assert known is TargetState.LIVE
                assert job is not None
                assert effects[0] == Ended(job)
            case _:
                assert known is TargetState.LIVE
                assert effects == [SendStop(job)] if job else False
        if job is not None:
            if reason is StopReason.CLIENT:
                self.reach(job_id, stop.accepted_at)
            assert job.stop is not None
            assert (job.stop == stop) == (state is not State.STOPPING), "the first reason wins"
        for run, before in others.items():
            assert (self.seen[run].job.stop, self.seen[run].job.terminal) == before

    def remember(self, job_id: str, seconds: float) -> None:
        """The first cancel counts, until it expires."""
        if seconds - self.cancels.get(job_id, -100.0) > MEMORY_SEC:
            self.cancels[job_id] = seconds

    def reach(self, job_id: str, seconds: float) -> None:
        """A client's cancel has reached a live job. The first one counts, until it expires."""
        if seconds - self.reached.get(job_id, -100.0) > MEMORY_SEC:
            self.reached[job_id] = seconds

    @rule(group=st.sampled_from(["g", "g1", "nobody"]))
    def cancel_group(self, group: str) -> None:
        """All jobs of exactly this group are stopped, and none of them is started in place of another."""
        members = [job for job in self.live_jobs() if job.request.group == group]
        others = {job.run: job.stop for job in self.live_jobs() if job not in members}
        stop = StopRequest(StopReason.CLIENT, self.now().mono)
        targets, effects = self.core.stop_group(group, stop, self.now())
        assert [target.job for target in targets] == members
        for job in members:
            self.reach(job.job_id, stop.accepted_at)
        self.carry_out(effects)
        assert all(job.stop for job in members)
        assert {run: self.seen[run].job.stop for run in others} == others

    @precondition(lambda self: self.live_jobs())
    @rule(which=ANY)
    def last_reader_leaves(self, which: int) -> None:
        """A disconnect stops a job like a cancel, with another reason."""
        jobs = self.live_jobs()
        self.stop(jobs[which % len(jobs)].job_id, StopReason.DISCONNECT)

    # Time.

    @rule(seconds=st.floats(0.01, 60))
    def time_passes(self, seconds: float) -> None:
        """Jobs may time out."""
        self.seconds += seconds
        now = self.now()
        late, effects = self.core.expire(now)
        assert all(job.deadline <= now.mono for job in late)
        self.carry_out(effects)
        next_at = self.core.next_deadline()
        assert next_at is None or next_at > now.mono

    @rule(which=ANY)
    def a_stop_is_overdue(self, which: int) -> None:
        """The supervisor gives up a stop; this has no effect on a job that is not being stopped."""
        if not self.seen:
            return
        job = self.seen[self.pick(self.seen, which) or min(self.seen)].job
        stopping = job.state is State.STOPPING
        if stopping:
            self.given_up.add(job.run)
            self.written_off = True
        effects = self.core.give_up(job, self.now())
        assert bool(effects) == stopping
        self.carry_out(effects)
        if stopping:
            assert effects == [Ended(job)], "nothing new is handed to an engine that does not answer"

    # The engine.

    @precondition(lambda self: self.engine is None)
    @rule()
    def engine_becomes_ready(self) -> None:
        """All waiting jobs are prepared, in order."""
        self.engine, self.written_off = ModelEngine(), False
        effects = self.core.engine_ready(ReadyEngine(CAPACITY, "a-model"))
        assert all(isinstance(effect, Submit | Begin) for effect in effects)
        self.carry_out(effects)

    @precondition(lambda self: self.engine is not None)
    @rule()
    def engine_dies(self) -> None:
        """Its cells are free then. Jobs that were not being stopped wait for the next engine (G7)."""
        cancelled = {job.run for job in self.live_jobs() if job.stop}
        waiting = [job for job in self.live_jobs() if not job.stop]
        self.engine, self.written_off = None, False
        effects = self.core.engine_lost("it is dead", self.now())
        self.carry_out(effects)
        assert all(isinstance(effect, Ended) for effect in effects)
        for effect in effects:
            assert isinstance(effect.job.terminal, Error)
            asked = effect.job.run in cancelled
            assert (effect.job.terminal.code is ErrorCode.ENGINE_LOST) != asked
            assert asked or effect.job.deaths == MAX_DEATHS
        assert self.live_jobs() == [job for job in waiting if job.deaths < MAX_DEATHS]
        assert all(job.state is State.QUEUED for job in self.live_jobs())

    @precondition(lambda self: self.engine is not None and self.engine.to_prepare)
    @rule(which=ANY, tokens=st.integers(1, 35))
    def a_prompt_is_counted(self, which: int, tokens: int) -> None:
        """In any order; some prompts never fit."""
        assert self.engine is not None
        run = self.engine.to_prepare.pop(which % len(self.engine.to_prepare))
        if run not in self.engine.dropped:
            self.engine.kept.add(run)
        self.engine.dropped.discard(run)
        self.carry_out(self.core.accepted(run, (1,) * tokens, self.now()))

    @precondition(lambda self: self.engine is not None and self.engine.waits)
    @rule(which=ANY)
    def a_run_gets_a_slot(self, which: int) -> None:
        """If one is free; the engine decides for which run. A stop may be on its way."""
        assert self.engine is not None
        run = self.pick(self.engine.waits, which)
        if run is None or len(self.engine.holds) >= CAPACITY.sequences:
            return
        self.engine.waits.remove(run)
        self.engine.holds.add(run)
        job = self.seen[run].job
        assert (self.core.started(run, self.now()) is job) == (not job.stop)

    @precondition(lambda self: self.engine is not None and self.engine.to_prepare)
    @rule(which=ANY)
    def a_prompt_is_refused(self, which: int) -> None:
        """A stop string may be too long, or the template may fail."""
        assert self.engine is not None
        run = self.engine.to_prepare.pop(which % len(self.engine.to_prepare))
        self.engine.dropped.discard(run)
        error = JobError(ErrorCode.INVALID_REQUEST, "a stop string is too long", param="stop")
        self.carry_out(self.core.failed(run, error, self.freed(), self.now()))

    @precondition(lambda self: self.engine is not None and self.engine.holds)
    @rule(which=ANY, texts=st.lists(st.tuples(LETTER, LETTER), min_size=1, max_size=4))
    def tokens_are_generated(self, which: int, texts: list[tuple[str, str]]) -> None:
        """Also for a run whose stop the engine has not read yet."""
        assert self.engine is not None
        run = self.pick(self.engine.holds, which)
        assert run is not None
        job = self.seen[run].job
        reported = job.state is State.RUNNING
        for n, (text, held) in enumerate(texts):
            self.core.progress(run, 3)
            assert (self.core.token(run, 1000 + n, text, self.now(), held) is job) == reported
            if reported:
                self.seen[run].reported += text
                self.seen[run].held = held
        self.carry_out(self.core.start_next())

    @precondition(lambda self: self.engine is not None and self.engine.holds)
    @rule(which=ANY, processed=st.integers(0, 35), cached=st.integers(0, 35))
    def part_of_a_prompt_is_computed(self, which: int, processed: int, cached: int) -> None:
        """Also for a run that has tokens already and computes its prompt again, or that is being stopped."""
        assert self.engine is not None
        run = self.pick(self.engine.holds, which)
        assert run is not None
        job = self.seen[run].job
        before = len(job.events)
        self.core.progress(run, processed, cached)
        reported = self.core.report_progress(run, self.now())
        assert len(job.events) - before == (reported is job)
        assert reported is None or (job.request.progress and not job.stop)

    @precondition(lambda self: self.engine is not None and len(self.engine.holds) > 1)
    @rule()
    def the_least_urgent_is_preempted(self) -> None:
        """Cells or slots have run out; the run may be being stopped."""
        assert self.engine is not None
        run = max(self.engine.holds, key=lambda run: self.seen[run].job.order)
        self.engine.holds.remove(run)
        self.engine.waits.add(run)
        self.core.preempted(run)
        self.carry_out(self.core.start_next())

    @precondition(lambda self: self.engine is not None and self.engine.waits)
    @rule()
    def the_least_urgent_waiting_run_is_returned(self) -> None:
        """It waits in the front, where it can be ended without asking the engine; a stop may be on its way."""
        assert self.engine is not None
        run = max(self.engine.waits, key=lambda run: self.seen[run].job.order)
        job = self.seen[run].job
        self.core.returned([run])
        if not job.stop:
            self.engine.waits.remove(run)
        assert (job in self.core.queue) == (job.live and not job.stop)
        self.carry_out(self.core.start_next())

    @precondition(lambda self: self.engine is not None)
    @rule(followers=st.integers(0, 9))
    def some_runs_wait_for_a_prefix(self, followers: int) -> None:
        """The engine is handed others for the slots that these leave free."""
        self.core.queue.followers = followers
        self.carry_out(self.core.start_next())

    @precondition(lambda self: self.engine is not None and self.engine.holds)
    @rule(which=ANY, held=st.booleans())
    def a_run_ends_by_itself(self, which: int, held: bool) -> None:
        """With or without text that was held back; a stop may be on its way."""
        assert self.engine is not None
        run = self.pick(self.engine.holds, which)
        assert run is not None
        seen = self.seen[run]
        if held or seen.held:
            text = seen.held + "…" * held
            if self.core.token(run, None, text, self.now()) is not None:
                seen.reported, seen.held = seen.reported + text, ""
        self.engine.holds.remove(run)
        self.carry_out(self.core.finished(run, "length", self.freed(), self.now()))

    @precondition(lambda self: self.engine is not None and self.engine.holds)
    @rule(which=ANY)
    def the_device_fails(self, which: int) -> None:
        """While it computes one run."""
        assert self.engine is not None
        run = self.pick(self.engine.holds, which)
        assert run is not None
        self.engine.holds.remove(run)
        error = JobError(ErrorCode.CUDA_ERROR, "GPU 0 failed")
        self.carry_out(self.core.failed(run, error, self.freed(), self.now()))

    @precondition(lambda self: self.engine is not None and self.engine.to_confirm)
    @rule(which=ANY)
    def a_stop_is_confirmed(self, which: int) -> None:
        """Every stop is confirmed; for a run that has ended meanwhile this has no effect."""
        assert self.engine is not None
        run = self.engine.to_confirm.pop(which % len(self.engine.to_confirm))
        waits = run in self.engine.holds | self.engine.waits
        self.engine.holds.discard(run)
        self.engine.waits.discard(run)
        effects = self.core.stopped(run, self.freed(), self.now())
        self.carry_out(effects)
        assert bool(effects) == (waits and run not in self.given_up)

    @precondition(lambda self: self.ended)
    @rule(which=ANY)
    def a_message_for_an_ended_run_arrives(self, which: int) -> None:
        """It is no news, whatever it says, and whoever has the id now; but for the word that its prompt is counted,
        which the engine owes and others wait for."""
        counting = [] if self.engine is None else self.engine.to_prepare
        runs = [run for run in self.ended if run not in counting]
        if not runs:
            return
        run = runs[which % len(runs)]
        before = self.kv_usage()
        now = self.now()
        assert self.core.started(run, now) is None
        assert self.core.token(run, 5, "late", now) is None
        self.core.progress(run, 99)
        assert self.core.report_progress(run, now) is None
        assert self.core.accepted(run, (1, 2), now) == []
        assert self.core.finished(run, "stop", self.freed(), now) == []
        assert self.core.failed(run, JobError(ErrorCode.INTERNAL, "late"), self.freed(), now) == []
        assert self.core.stopped(run, self.freed(), now) == []
        assert self.kv_usage() == before

    # The end.

    @precondition(lambda self: len(self.seen) > 6)
    @rule()
    def the_worker_drains(self) -> None:
        """No job is accepted any more."""
        self.core.draining = True

    @precondition(lambda self: self.core.draining)
    @rule()
    def all_jobs_are_stopped(self) -> None:
        """At the end of the drain, waiting jobs end, running jobs are stopped, and no job is started."""
        effects = self.core.stop_all(StopRequest(StopReason.SHUTDOWN, self.now().mono), self.now())
        assert not any(isinstance(effect, Begin | Submit) for effect in effects)
        self.carry_out(effects)
        assert all(job.state is State.STOPPING for job in self.live_jobs())

    # What must always hold.

    @invariant()
    def each_stream_is_started_tokens_and_one_ending(self) -> None:
        """`started progress* token* (end|error)` or `error`, a beginning of it while the job is live (G2)."""
        for seen in self.seen.values():
            names = "".join(event.name + " " for event in seen.job.events)
            if seen.job.live:
                assert BEGINNING.fullmatch(names), names
                assert seen.job.terminal is None
            else:
                assert WHOLE_STREAM.fullmatch(names), names

    @invariant()
    def what_was_reported_is_never_changed(self) -> None:
        """Events are only added, and after the terminal one nothing about a job changes, not even its record."""
        for seen in self.seen.values():
            events = seen.job.events
            assert events[: len(seen.events)] == seen.events
            if seen.over is not None:
                assert snapshot_of(seen.job) == seen.over
            elif not seen.job.live:
                seen.over = snapshot_of(seen.job)
            seen.events = list(events)

    @invariant()
    def tokens_are_numbered_without_a_gap(self) -> None:
        """0, 1, 2 …; `tokens_out` counts them but for a last one that brought held text only."""
        for seen in self.seen.values():
            numbers = [event.i for event in seen.job.events if isinstance(event, Token)]
            assert numbers == list(range(len(numbers)))
            terminal = seen.job.terminal
            if isinstance(terminal, End):
                assert terminal.tokens_out == seen.job.tokens_out
                assert len(numbers) - terminal.tokens_out in (0, 1)

    @invariant()
    def no_text_is_lost(self) -> None:
        """However a job ends, its events have the text of all its tokens, also text that was held back."""
        for seen in self.seen.values():
            text = "".join(event.t for event in seen.job.events if isinstance(event, Token))
            assert text == (seen.reported if seen.job.live else seen.reported + seen.held)

    @invariant()
    def the_first_stop_request_decides(self) -> None:
        """A stopped job's error and receipt have its first reason; a job without a stop request has no receipt."""
        for seen in self.seen.values():
            job, stop, terminal = seen.job, seen.job.stop, seen.job.terminal
            assert (job.receipt is not None) == (terminal is not None and stop is not None)
            if terminal is None or stop is None:
                continue
            assert isinstance(terminal, Error)
            assert job.receipt is not None
            assert job.receipt.reason is stop.reason
            assert (job.receipt.freed_ms is None) == (job.run in self.given_up)
            if stop.reason is StopReason.TIMEOUT:
                assert terminal.code is ErrorCode.INFERENCE_TIMEOUT
            else:
                assert (terminal.code, terminal.details["reason"]) == (ErrorCode.CANCELLED, stop.reason.value)

    @invariant()
    def the_counts_agree(self) -> None:
        """Tracker, queue and engine have the same jobs, and the engine has at most a few more than slots."""
        live = self.live_jobs()
        queued = [job.run for job in live if job.state is State.QUEUED]
        started = {job.run for job in live if job.state is not State.QUEUED}
        assert {job.run for job in self.core.tracker} == {job.run for job in live}
        assert len({job.job_id for job in live}) == len(live)
        waiting = sorted((job for job in live if job.state is State.QUEUED), key=lambda job: job.order)
        assert [job.run for job in waiting] == list(self.core.queue._waiting), "urgency, then arrival"
        assert len(waiting) == len(queued)
        assert set(self.core.queue._in_engine) == started
        inside = self.core.queue.in_engine
        give_way = sum(any(other.may_preempt(job) for other in inside) for job in inside)
        assert len(started) - give_way <= 2 * (CAPACITY.sequences + AHEAD)
        if self.engine is None:
            assert not started
        else:
            assert (self.engine.holds | self.engine.waits) - self.given_up == started
            wanted = self.engine.kept | (set(self.engine.to_prepare) - self.engine.dropped)
            if not self.written_off:
                assert wanted <= set(queued), "the engine keeps a prompt without a job"
                assert not self.engine.kept & self.engine.waits
        suspects = {job.run for job in live if job.deaths >= SUSPECT_DEATHS}
        assert len(suspects & started) <= 1, "two suspects run side by side"
        assert sorted(self.ended) == sorted(run for run, seen in self.seen.items() if not seen.job.live)

    @invariant()
    def of_jobs_with_one_key_the_newest_alone_survives(self) -> None:
        """All older ones have ended or are being stopped."""
        for key in ("k", "k1"):
            live = [job for job in self.live_jobs() if job.request.supersedes == key and not job.stop]
            assert len(live) <= 1

    @invariant()
    def no_job_waits_that_could_run(self) -> None:
        """The head of the queue is handed to a working engine once its prompt is counted and few jobs wait there."""
        if self.engine is None or self.written_off:
            return
        head = next(iter(self.core.queue._waiting.values()), None)
        suspected = any(job.deaths >= SUSPECT_DEATHS for job in self.live_jobs())
        if head is not None and head.prompt_tokens is not None and not suspected:
            inside = [job for job in self.core.queue.in_engine if not head.may_preempt(job)]
            enough = CAPACITY.sequences + AHEAD
            assert len(inside) >= enough + min(self.core.queue.followers, enough)

    def teardown(self) -> None:
        """Let the engine finish its runs: nothing is left, and every job has its terminal event."""
        if self.written_off:
            self.engine_dies()
        if self.engine is None:
            self.engine_becomes_ready()
        assert self.engine is not None
        for _ in range(1000):
            if self.engine.to_prepare:
                self.a_prompt_is_counted(0, 5)
            elif self.engine.to_confirm:
                self.a_stop_is_confirmed(0)
            elif self.engine.waits and len(self.engine.holds) < CAPACITY.sequences:
                self.a_run_gets_a_slot(0)
            elif self.engine.holds:
                self.a_run_ends_by_itself(0, held=False)
            else:
                break
        assert self.live_jobs() == []
        assert len(self.core.tracker) == 0
        assert (len(self.core.queue), self.core.queue.running) == (0, 0)
        assert self.core.next_deadline() is None
        for seen in self.seen.values():
            assert isinstance(seen.job.terminal, End | Error)
            assert isinstance(seen.job.events[0], Started | Error)
        self.what_was_reported_is_never_changed()
        self.the_first_stop_request_decides()


TestCore = Core.TestCase
TestCore.settings = settings(max_examples=examples(100), stateful_step_count=60, deadline=None)
