"""Stops: a client's cancel finds its job from any router; a stop that no worker confirms is ended here in time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.fleet.cancels import Cancel
from worker_orcd.fleet.keepers import KEEPERS, Claim, Known
from worker_orcd.fleet.mirrors import Mirror, Mirrors, stop_here
from worker_orcd.fleet.peers import CALL_SEC, PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.tasks import Tasks
from worker_orcd.fleet.unconfirmed import Unconfirmed
from worker_orcd.fleet.wire import SharedStop, StopNote
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.worker.now import now

KEEPER_SEC = 0.5
"""How long a keeper may take to answer a cancel, before all workers are asked for the job."""
AGAIN_SEC = 0.1
FIND_SEC = 1.0
"""How long workers may take to say whether they have a job."""
SECOND_LOOK_SEC = 0.1
"""A stop that a worker has not reported so soon is sent to it again, by the router that serves the job."""
REPORT_SEC = 0.25
"""How long after a job's time limit its worker may report that it has passed."""
MAX_REQUESTS = 10_000
MARGIN_SEC = 0.5
"""A stop that is not confirmed is ended so long before the cancel deadline."""


@dataclass(slots=True)
class Reached:
    """Who knows of a stop of several jobs.

    Attributes:
        workers: those that have answered.
        notes: whether one of them tells all routers.
        stopped: ids of the jobs.
    """

    workers: set[str] = field(default_factory=set)
    notes: bool = False
    stopped: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a keeper says to a cancel: None if it does not answer. `since` is the earliest time at which the cancel can
    have been accepted, on the keeper's clock."""

    keeper: Remote
    known: Known | None = None
    since: float = 0.0


Asked = dict[str, asyncio.Task[Answer]]
"""The keepers that were asked, by name, and their answers."""


class Stopping:
    """Stops jobs for one router."""

    def __init__(
        self, router: str, peers: Peers, mirrors: Mirrors, tasks: Tasks, deadline_sec: float
    ) -> None:
        self._router = router
        self._unconfirmed = Unconfirmed(tasks)
        self._peers = peers
        self._mirrors = mirrors
        self._tasks = tasks
        self._deadline_sec = deadline_sec
        self._requests: BoundedByOwner[str, tuple[Timestamp, str | None]] = BoundedByOwner(MAX_REQUESTS)
        """When each request began whose jobs have ids of their own, and its cancel's correlation id."""

    async def cancel(self, cancel: Cancel) -> None:
        """Carry out a client's cancel, again until those that have to know of it have answered, or are dead."""
        await self._repeat(lambda age_sec: self._tried(cancel, first=not age_sec), cancel.accepted)

    async def stop_shared(self, shared: SharedStop, reached: Reached) -> None:
        """Stop all jobs that share a name, wherever they are, again until all workers have answered, or are dead."""
        accepted = now()
        await self._repeat(lambda age_sec: self._reach_all(shared.after(age_sec), reached), accepted)

    async def _repeat(self, attempt: Callable[[float], Awaitable[bool]], accepted: Timestamp) -> None:
        """Try to carry out a stop, so many seconds after it was accepted, until all is done."""
        age_sec = 0.0
        while age_sec < self._deadline_sec:
            with contextlib.suppress(JobError):  # A worker has failed.
                if await attempt(age_sec):
                    return
            await asyncio.sleep(AGAIN_SEC)
            age_sec = now().mono - accepted.mono

    async def _reach_all(self, shared: SharedStop, reached: Reached) -> bool:
        """Tell all workers that have not answered of a stop of several jobs. The keepers of the name tell all routers.
        Returns whether all is done."""
        reached.stopped |= self.stop_mirrors(shared)
        keepers = {keeper.name for keeper in self._peers.keepers((shared.owner, shared.name))[:KEEPERS]}
        calls = [
            self._reach(remote, shared, reached, tells=remote.name in keepers)
            for remote in self._peers
            if remote.name not in reached.workers or (remote.name in keepers and not reached.notes)
        ]
        await asyncio.gather(*calls)
        return reached.notes and all(remote.name in reached.workers for remote in self._peers)

    async def _reach(self, remote: Remote, shared: SharedStop, reached: Reached, *, tells: bool) -> None:
        try:
            reached.stopped.update(await remote.call("stop_shared", shared, tells))
        except (PeerLost, PeerSilent, JobError):
            return
        reached.workers.add(remote.name)
        reached.notes |= tells

    async def _tried(self, cancel: Cancel, *, first: bool) -> bool:
        """Try to carry out a client's cancel. Returns whether all is done.

        Both keepers of the id are asked: one may be dead, or new, or not know of the latest use. A keeper carries the
        cancel out at once if it had reported by the time of the cancel that it had granted the use. Of any other use it
        says how old it is, and this router decides: a late message would reach a later use otherwise. A keeper that
        knows of no use is asked to remember the cancel; later, only if no other one knows of a use. A worker that is no
        keeper gets the stop meanwhile, if the job's copy is here.
        """
        keepers = self._peers.keepers(cancel.key)[:KEEPERS]
        asked = {
            keeper.name: self._tasks.spawn(self._ask(cancel, keeper, keeper.granted if first else 0))
            for keeper in keepers
        }
        carried: dict[str, asyncio.Task[bool]] = {}
        mirror = self._mirrors.live(cancel.key)
        if mirror is not None and mirror.stop is None and mirror.worker not in asked:
            copy = Claim(mirror.job.incarnation, mirror.worker or "")
            if cancel.is_for(mirror.job):
                self.noted(StopNote(cancel.key, copy.incarnation, cancel.correlation_id))
                carried[copy.incarnation] = self._tasks.spawn(self._stop_at(cancel, copy))
        known: set[str] = set()
        unknowing: list[Answer] = []
        unsure = not keepers
        tasks: list[asyncio.Task[bool]] = []
        for answered in asyncio.as_completed(asked.values()):
            answer = await answered
            if answer.known is None:
                unsure = True
            elif answer.known.claim is None:
                unknowing.append(answer)
                if first:
                    tasks.append(self._tasks.spawn(self._remember(cancel, answer, asked, log=not tasks)))
            elif (use := answer.known.claim.incarnation) not in known:
                known.add(use)
                tasks.append(self._tasks.spawn(self._carry_out(cancel, answer, asked, carried.get(use))))
        if unsure and not known:
            found = await self._searched(cancel)
            if found is None:
                tasks.append(self._tasks.spawn(self._reach_all(cancel.of_parts(), Reached())))
            else:
                unsure = False
                self.noted(StopNote(cancel.key, found.incarnation, cancel.correlation_id))
                tasks.append(self._tasks.spawn(self._stop_at(cancel, found)))
        if not (first or known):
            tasks += [self._tasks.spawn(self._remember(cancel, one, asked, log=False)) for one in unknowing]
        done = await asyncio.gather(*tasks, *carried.values())
        return all(done) and not unsure

    async def _ask(self, cancel: Cancel, keeper: Remote, up_to: int) -> Answer:
        try:
            arguments = (cancel.key, cancel.correlation_id, up_to, cancel.of_parts())
            known: Known = await keeper.call("cancel", *arguments, patience_sec=KEEPER_SEC)
        except (PeerLost, PeerSilent, JobError):
            return Answer(keeper)
        cancel.refused |= known.refused
        if known.reached:
            cancel.recorded.set()
        return Answer(keeper, known, known.at - cancel.age_sec)

    async def _remember(self, cancel: Cancel, answer: Answer, asked: Asked, *, log: bool) -> bool:
        """Have a keeper that knows of no use remember a cancel. Returns whether it has answered."""
        keeper = answer.keeper
        if keeper.name in cancel.remembered or (cancel.refused and not log):
            return True
        arguments = (cancel.key, cancel.correlation_id, answer.since, log)
        try:
            known: Known = await keeper.call("remember", *arguments, patience_sec=KEEPER_SEC)
        except (PeerLost, PeerSilent, JobError):
            return False
        cancel.remembered.add(keeper.name)
        cancel.recorded.set()
        return known.claim is None or await self._carry_out(cancel, Answer(keeper, known), asked)

    async def _carry_out(
        self, cancel: Cancel, answer: Answer, asked: Asked, stopping: asyncio.Task[bool] | None = None
    ) -> bool:
        """Carry out a cancel of the use that a keeper knows of, if it is for that one. `stopping`: its worker gets the
        stop already. Returns whether all that have to know have answered."""
        keeper, known = answer.keeper, answer.known
        claim = None if known is None else known.claim
        if known is None or claim is None or claim.incarnation in cancel.done:
            return True
        if not (known.reached or cancel.reaches(known.age_sec)):
            return True
        self.noted(StopNote(cancel.key, claim.incarnation, cancel.correlation_id))
        telling = asked[keeper.name]
        if not known.reached:
            telling = self._tasks.spawn(self._ask(cancel, keeper, known.order))
        sharing: asyncio.Task[bool] | None = None
        if claim.parts:
            sharing = self._tasks.spawn(self._reach_all(cancel.of_parts(), Reached()))
        if not claim.incarnation:
            done = True
        elif stopping is not None:
            done = await stopping
        else:
            holder = telling if claim.worker == keeper.name else asked.get(claim.worker)
            at_holder = None if holder is None else (await holder).known
            done = (at_holder is not None and at_holder.stopped) or await self._stop_at(cancel, claim)
        done = (await telling).known is not None and done
        done = (sharing is None or await sharing) and done
        if done:
            cancel.done.add(claim.incarnation)
        return done

    async def _stop_at(self, cancel: Cancel, claim: Claim) -> bool:
        """Stop a job at its worker. Returns whether the worker has answered or is dead; if not, it gets the stop again
        when it answers."""
        remote = self._peers.get(claim.worker)
        if remote is None:
            return not claim.worker or self._peers.has_lost(claim.worker)
        sending = self._unconfirmed.send(
            remote, "stop", cancel.key, claim.incarnation, StopReason.CLIENT, cancel.correlation_id
        )
        await asyncio.wait({sending}, timeout=CALL_SEC)
        return sending.done() and sending.exception() is None

    async def _searched(self, cancel: Cancel) -> Claim | None:
        """The live use of an id that a cancel is for, without its keepers."""
        mirror = self._mirrors.live(cancel.key)
        if mirror is not None and cancel.is_for(mirror.job):
            return Claim(mirror.job.incarnation, mirror.worker or "")
        return await live_use(self._peers, cancel.key, cancel.reaches)

    def noted(self, note: StopNote) -> None:
        """A client has cancelled a job. The router that serves it ends it if no worker does."""
        found = self._mirrors.get(note.incarnation)
        if found is not None:
            self.stop(found, StopReason.CLIENT, note.correlation_id, send=False)

    def stop_mirrors(self, shared: SharedStop) -> set[str]:
        """Stop the jobs that share a name and whose copies are here. Returns the ids of those that were not being
        stopped. All workers get this stop; the router that serves a job ends it if no worker does."""
        moment = now()
        if shared.attribute == "part_of" and (known := self._requests.get(shared.owner, shared.name)):
            began, _ = known
            if shared.covers(began, moment):
                self._requests.add(shared.owner, shared.name, (began, shared.correlation_id))
        jobs = [mirror for mirror in self._mirrors if shared.is_for(mirror.job, moment) and not mirror.stop]
        for mirror in jobs:
            self.stop(
                mirror, shared.reason, shared.correlation_id, send=False, superseded_by=shared.superseded_by
            )
        return {mirror.job.job_id for mirror in jobs}

    def accepted(self, mirrors: Sequence[Mirror]) -> None:
        """Stop new jobs of a request that was cancelled when its earlier ones had just ended. A job with the request's
        id begins another use of it."""
        for mirror in mirrors:
            job, name = mirror.job, mirror.job.request.part_of
            if name is None:
                continue
            if name == job.job_id:
                self._requests.add(job.owner, name, (job.accepted, None))
            _, cancel = self._requests.get(job.owner, name) or (None, None)
            if cancel is not None:
                self.stop(mirror, StopReason.CLIENT, cancel)

    def stop(
        self,
        mirror: Mirror,
        reason: StopReason,
        correlation_id: str,
        *,
        send: bool = True,
        superseded_by: str | None = None,
    ) -> None:
        """Stop a job whose copy is here; unless `send`, another router tells its worker."""
        if mirror.stop is not None or not mirror.job.live:
            return
        mirror.stop = StopRequest(reason, now().mono, correlation_id, superseded_by)
        if send:
            self.send(mirror)
        if not mirror.serves:
            return
        if mirror.worker is None and mirror.job.state is State.QUEUED and not mirror.placing:
            self._end(mirror)  # It is between two workers.
            return
        self.see_to(mirror)

    def see_to(self, mirror: Mirror) -> None:
        """Repeat a stop that the job's worker does not confirm, and end the job itself in the end."""
        if mirror.stop is not None and mirror.overdue is None:
            loop = asyncio.get_running_loop()
            mirror.overdue = loop.call_later(SECOND_LOOK_SEC, self._second_look, mirror)

    def limit(self, mirror: Mirror) -> None:
        """Stop a job that this router serves when its time limit has passed and its worker has not reported that."""
        left = mirror.job.deadline - now().mono + REPORT_SEC
        stop = (mirror, StopReason.TIMEOUT, mirror.job.correlation_id)
        mirror.time_limit = asyncio.get_running_loop().call_later(left, self.stop, *stop)

    def send(self, mirror: Mirror) -> None:
        """Tell the worker of a stop, until it confirms that."""
        remote = self._peers.get(mirror.worker)
        if remote is not None and mirror.stop is not None:
            self._unconfirmed.send(remote, *self._message(mirror.job, mirror.stop))

    def disown(self, remote: Remote, incarnation: str, attempt: int | None = None) -> asyncio.Task[None]:
        """Have a worker stop a job which this router does not have there, or withdraw an attempt to hand it over.
        Returns as `Unconfirmed.send`."""
        return self._unconfirmed.send(remote, "disown", self._router, incarnation, attempt)

    async def everywhere(self, method: str, *arguments: Any, within_sec: float) -> None:
        """Call a method of all workers. Those that do not answer in time get the call again when they do."""
        calls = {self._unconfirmed.send(remote, method, *arguments) for remote in self._peers}
        if calls:
            await asyncio.wait(calls, timeout=within_sec)

    def _message(self, job: Job, stop: StopRequest) -> tuple[Any, ...]:
        if stop.reason is StopReason.DISCONNECT:
            return ("client_left", self._router, job.key, job.incarnation)
        return ("stop", job.key, job.incarnation, stop.reason, stop.correlation_id or "", stop.superseded_by)

    def _second_look(self, mirror: Mirror) -> None:
        remote = self._peers.get(mirror.worker)
        if mirror.job.stop is None and mirror.stop is not None and remote is not None:
            self.send(mirror)
            self._tasks.try_to(remote.call(*self._message(mirror.job, mirror.stop)))  # The first may be lost.
        left = self._deadline_sec - MARGIN_SEC - SECOND_LOOK_SEC
        mirror.overdue = asyncio.get_running_loop().call_later(left, self._end, mirror)

    def _end(self, mirror: Mirror) -> None:
        """No worker has the job, or none that answers: say so to its readers."""
        if mirror.stop is not None and mirror.job.live:
            stop_here(mirror, mirror.job.stop or mirror.stop)
            self._mirrors.end(mirror)


async def live_use(peers: Peers, key: JobKey, is_meant: Callable[[float], bool]) -> Claim | None:
    """The live use of an id whose age (seconds) is one that is meant, by asking all workers."""
    found, _ = await peers.ask("find", key, patience_sec=FIND_SEC)
    return next(
        (
            Claim(use.incarnation, remote.name, router=use.served_by, term=use.term)
            for remote, use in found
            if use.live and is_meant(use.age_sec)
        ),
        None,
    )
