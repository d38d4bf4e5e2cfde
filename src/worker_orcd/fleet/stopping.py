"""Stops: a client's cancel finds its job from any router; a stop that no worker confirms is ended here in time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.fleet.keepers import KEEPERS, Claim
from worker_orcd.fleet.mirrors import Mirror, Mirrors, stop_here
from worker_orcd.fleet.peers import CALL_SEC, PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.tasks import Tasks, answers
from worker_orcd.fleet.unconfirmed import Unconfirmed
from worker_orcd.fleet.wire import SharedStop, StopNote
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.worker.now import now

NO_ANSWER = "no answer"
Answer = tuple[Claim | str | None, bool]
"""A keeper's answer to a cancel: the use of the id, and whether the keeper has stopped its job."""
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

    async def cancel(self, key: JobKey, correlation_id: str, recorded: asyncio.Event) -> None:
        """Carry out a client's cancel, again until those that have to know of it have answered, or are dead. Sets
        `recorded` as soon as another process has it."""
        accepted = now()
        await self._repeat(
            lambda age_sec: self._cancelled(key, correlation_id, recorded, accepted, age_sec), accepted
        )

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

    async def _cancelled(
        self, key: JobKey, correlation_id: str, recorded: asyncio.Event, accepted: Timestamp, age_sec: float
    ) -> bool:
        """Try to carry out a client's cancel, `age_sec` after it was accepted. Returns whether all is done.

        Its keepers know which use of the id it is for, or remember it. Both are asked: one may be dead, or new. A
        keeper that has the job stops it; a worker that is no keeper gets the stop meanwhile, if the job's copy is here.
        """
        keepers, remember = self._peers.keepers(key)[:KEEPERS], not recorded.is_set()
        asked = {
            keeper.name: self._tasks.spawn(self._ask(keeper, key, correlation_id, place, age_sec, remember))
            for place, keeper in enumerate(keepers)
        }
        mirror = self._mirrors.live(key)
        if mirror is not None and mirror.job.accepted.mono > accepted.mono:
            mirror = None
        stopping: asyncio.Task[bool] | None = None
        if mirror is not None and mirror.worker not in asked and mirror.stop is None:
            stopping = self._tasks.spawn(
                self._stop_at(mirror.worker, key, mirror.job.incarnation, correlation_id)
            )
        known, unsure = None, not keepers
        for answer in asyncio.as_completed(asked.values()):
            claim, _ = await answer
            if isinstance(claim, str):
                unsure = True
            else:
                recorded.set()
            if isinstance(claim, Claim):
                known = claim
                break  # A keeper that does not answer holds up no cancel that the other one knows about.
        if known is None and unsure:
            known = await self._searched(key, accepted)
        sharing: asyncio.Task[bool] | None = None
        if unsure if known is None else known.parts:
            owner, name = key
            parts = SharedStop(
                owner, "part_of", name, StopReason.CLIENT, correlation_id, accepted.unix, age_sec
            )
            sharing = self._tasks.spawn(self._reach_all(parts, Reached()))
        if known is None:
            return not unsure
        self._tasks.spawn(self._correct(keepers, list(asked.values()), key, known))
        self.noted(StopNote(key, known.incarnation, correlation_id))
        if not known.incarnation or (known.worker in asked and (await asked[known.worker])[1]):
            stopped = True
        elif stopping is not None and mirror is not None and mirror.job.incarnation == known.incarnation:
            stopped = await stopping
        else:
            stopped = await self._stop_at(known.worker, key, known.incarnation, correlation_id)
        return (sharing is None or await sharing) and stopped

    async def _stop_at(self, worker: str | None, key: JobKey, incarnation: str, correlation_id: str) -> bool:
        """Stop a job at its worker. Returns whether the worker has answered or is dead; if not, it gets the stop again
        when it answers."""
        remote = self._peers.get(worker)
        if remote is None:
            return worker is None or self._peers.has_lost(worker)
        sending = self._unconfirmed.send(remote, "stop", key, incarnation, StopReason.CLIENT, correlation_id)
        await asyncio.wait({sending}, timeout=CALL_SEC)
        return sending.done() and sending.exception() is None

    async def _ask(self, keeper: Remote, *arguments: object) -> Answer:
        try:
            answer: tuple[Claim, bool] | None = await keeper.call(
                "cancel", *arguments, patience_sec=KEEPER_SEC
            )
        except (PeerLost, PeerSilent, JobError):
            return NO_ANSWER, False
        return answer or (None, False)

    async def _correct(
        self,
        keepers: Sequence[Remote],
        asked: Sequence[asyncio.Task[Answer]],
        key: JobKey,
        known: Claim,
    ) -> None:
        """A keeper that does not know what the other one does now remembers a cancel that is carried out already."""
        for keeper, answer in zip(keepers, asked, strict=True):
            if (await answer)[0] is None:
                await answers([keeper.call("claim", key, known, None)])

    async def _searched(self, key: JobKey, accepted: Timestamp) -> Claim | None:
        """The live use of an id, without its keepers, unless it is younger than the cancel."""
        mirror = self._mirrors.live(key)
        if mirror is not None and mirror.job.accepted.mono <= accepted.mono:
            return Claim(
                mirror.job.incarnation, mirror.worker or "", router=mirror.served_by, term=mirror.term
            )
        return await live_use(self._peers, key, accepted.unix)

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


async def live_use(peers: Peers, key: JobKey, before: float) -> Claim | None:
    """The live use of an id that was accepted before a time (Unix), by asking all workers."""
    found, _ = await peers.ask("find", key, patience_sec=FIND_SEC)
    return next(
        (
            Claim(use.incarnation, remote.name, router=use.served_by, term=use.term)
            for remote, use in found
            if use.live and use.accepted_unix <= before
        ),
        None,
    )
