"""Rules of the core's state machine: what the engine does."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.property.core_state import ANY, CAPACITY, LETTER, CoreState, ModelEngine
from worker_orcd.jobs.effects import Begin, Ended, Submit
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import Error
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.queue import ReadyEngine
from worker_orcd.jobs.suspects import MAX_DEATHS


class EngineRules(CoreState):
    """An engine answers each of the core's effects at some time, or dies."""

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
