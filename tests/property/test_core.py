"""Any sequence of events against the pure core, with a model of an engine beside it (G2, G3, G4, G8).

The model engine knows only the effects. It answers each `Submit` and each `SendStop` some time later, and
continues generating until it has answered: so every crossing of a cancel with an end, a failure, a death or another
cancel is tried.
"""

from hypothesis import settings, strategies as st
from hypothesis.stateful import initialize, invariant

from tests.fakes import snapshot_of
from tests.lanes import examples
from tests.property.core_clients import ClientRules
from tests.property.core_engine import EngineRules
from tests.property.core_state import BEGINNING, CAPACITY, WHOLE_STREAM
from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.events import End, Error, Started, Token
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.queue import AHEAD
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.jobs.suspects import SUSPECT_DEATHS


class Core(ClientRules, EngineRules):
    """Clients, an engine and time act at random."""

    @initialize(ready=st.booleans())
    def begin(self, ready: bool) -> None:
        """With an engine, or while it is still loading."""
        if ready:
            self.engine_becomes_ready()

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
