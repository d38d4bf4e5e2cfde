"""Rules of the core's state machine: what clients do, time, and the drain."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.fakes import execute, submit
from tests.property.core_state import (
    ANY,
    IDS,
    MAX_QUEUE,
    MEMORY_SEC,
    CoreState,
    Seen,
)
from worker_orcd.jobs.effects import Begin, Ended, SendStop, Submit
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.position import Position
from worker_orcd.jobs.refused_requests import REFUSED_KEPT_SEC
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import TargetState


class ClientRules(CoreState):
    """Clients and time act at random."""

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
        stop = StopRequest(StopReason.SHUTDOWN, self.now().mono)
        _, effects = self.core.stop_together([(job, stop) for job in self.core.tracker], self.now())
        assert not any(isinstance(effect, Begin | Submit) for effect in effects)
        self.carry_out(effects)
        assert all(job.state is State.STOPPING for job in self.live_jobs())
