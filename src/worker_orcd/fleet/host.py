"""A worker as a fleet's routers see it: what they ask of it, and what it keeps for them.

Every call names the use of the job id that it is for: by its incarnation, or by how many uses this worker had granted
as a keeper. So nothing meant for one use can reach a later one, however late it comes. No call waits for an engine, but
for those that say so.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from worker_orcd import narration
from worker_orcd.fleet.death import Death
from worker_orcd.fleet.feeds import SWEEP_SEC, Feeds
from worker_orcd.fleet.keepers import Claim, Keeper, Known, Verdict
from worker_orcd.fleet.metrics import RouteMetrics
from worker_orcd.fleet.routing import Routed, chain_of
from worker_orcd.fleet.state import state_of
from worker_orcd.fleet.wire import (
    DropNote,
    Followed,
    Found,
    News,
    Refusal,
    SharedStop,
    StopNote,
)
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.pending_cancels import PendingCancels
from worker_orcd.jobs.replication import Cursor, JobUpdate
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.stop_target import TargetState
from worker_orcd.protocol.messages import Template, Tokenized
from worker_orcd.worker.interface import Record
from worker_orcd.worker.now import now
from worker_orcd.worker.worker import Worker


class WorkerHost:
    """One worker of a fleet, without HTTP."""

    def __init__(self, worker: Worker, narrator: narration.Narrator, die: Callable[[], None]) -> None:
        """`die` ends this process at once: jobs then go on at other workers, instead of failing with this one."""
        self._worker = worker
        self._narrator = narrator
        self._routes = RouteMetrics(worker.metrics.registry)
        self._tracker = worker.dispatcher.tracker
        self._feeds = Feeds(lambda: state_of(worker))
        self.log = self._feeds.log
        """Passes a log event on to routers."""
        self._keeper = Keeper(worker.policy.cancel_memory_sec)
        self._early = PendingCancels(worker.policy.cancel_memory_sec)
        """Stops of uses whose jobs have not arrived here yet, by owner and incarnation; and attempts to hand jobs over
        that routers have withdrawn."""
        self._sweeping: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._shutdown: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        worker.subscribe(self._feeds)
        worker.subscribe(Death(die))

    def start(self) -> None:
        """Start the worker, and end what nobody serves any more."""
        self._worker.start()
        self._sweeping = asyncio.create_task(self._sweep(), name="leases")

    async def drain(self) -> None:
        """Let jobs finish for the drain time, stop the rest, and end the engine. Called again, wait for the same."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._worker.drain(), name="drain")
        await asyncio.shield(self._draining)

    async def shut_down(self, why: str) -> None:
        """Drain, as a client has asked: the fleet is to end."""
        if not self._shutdown.done():
            self._shutdown.set_result(why)
        await self.drain()

    async def shutdown_asked(self) -> str:
        """Wait until a client asks for the end of the fleet. Returns who."""
        return await asyncio.shield(self._shutdown)

    # Following.

    async def poll(self, router: str, wait_sec: float, seen: int) -> News:
        """News for a router, as soon as there is any; the last answer again if it has not `seen` that. Renews its
        lease."""
        news = await self._feeds.poll(router, wait_sec, seen)
        return replace(news, granted=self._keeper.granted)

    async def follow(self, router: str, key: JobKey, incarnation: str, cursor: Cursor) -> Followed | None:
        """Have a router follow a job from a place on. None: this use of the id is not here, or not kept."""
        job = self._job(key, incarnation)
        if job is None:
            return None
        followed = Followed(job.request, cursor.advance(job, now()), *self._feeds.served_by(job))
        self._feeds.of(router).follow(job, cursor)
        return followed

    async def renew_lease(self, router: str) -> None:
        """A router is alive, though it may be too busy to poll."""
        self._feeds.renew(router)

    async def is_alive(self, router: str) -> bool:
        """Whether a router is alive."""
        return self._feeds.is_alive(router)

    async def find(self, key: JobKey) -> Found | None:
        """The latest use of an id here."""
        owner, job_id = key
        self._worker.forget_old()
        live = self._tracker.live(job_id, owner)
        job = live or self._tracker.ended_job(job_id, owner)
        if job is None:
            return None
        moment = now()
        served_by, term = self._feeds.served_by(job)
        age_sec = moment.mono - job.accepted.mono
        return Found(job.incarnation, live is not None, job.accepted.unix, served_by, term, age_sec)

    async def is_over(self, key: JobKey, incarnation: str, later: str) -> bool | None:
        """Whether a use of an id is over, as it is if the `later` use has come here; None: it was never here, or that
        is long ago."""
        owner, job_id = key
        job = self._tracker.live(job_id, owner)
        if job is not None and job.incarnation == incarnation:
            return False
        has_come = job is not None and job.incarnation == later
        return has_come or self._has_record(key, incarnation) or self._has_record(key, later) or None

    # Clients' requests.

    async def execute(  # noqa: PLR0913  # all that is known of a request
        self,
        routed: Routed,
        requests: Sequence[JobRequest],
        copies: Sequence[JobUpdate],
        correlation_id: str,
        owner: str,
        headers: Mapping[str, str],
        retry_of: StopRequest | None,
    ) -> list[JobUpdate] | Refusal:
        """Accept the jobs of a client's request, all or none, for the router that serves the client. Jobs that another
        worker has lost continue after the tokens of their copies.

        Returns:
            What is new of each; also if they were accepted before, and the router asks again as it had no answer.
        """
        moment = now()
        for copy in copies:
            if self._early.of((routed.router, f"{copy.incarnation}.{routed.attempt}"), moment) is not None:
                return Refusal.of(JobError(ErrorCode.ENGINE_LOST, "the router has withdrawn the job"))
        jobs = self._accepted_before(routed.router, requests, copies, owner)
        if jobs is None:
            if not routed.may_wait and not state_of(self._worker).has_free_slot:
                return Refusal.of(JobError(ErrorCode.QUEUE_FULL, "no slot is free"))
            for request, copy in zip(requests, copies, strict=True):
                early = (owner, copy.incarnation)
                if (stop := self._early.of(early, moment) or copy.stop) is not None:
                    self._early.use(early)
                    stop = replace(stop, accepted_at=moment.mono)  # A copy's stop has another clock.
                    self._worker.dispatcher.remembered.add((owner, request.job_id), stop)
            try:
                streams = self._worker.execute(requests, correlation_id, owner, headers, retry_of, copies)
            except JobError as error:
                return Refusal.of(error)
            finally:
                for request in requests:  # A stop is for this use of an id only.
                    self._worker.dispatcher.remembered.use((owner, request.job_id))
            jobs = [stream.job for stream in streams]
            for job in jobs:
                self._routed(job, routed)
        self._feeds.warm(chain_of(requests[0], owner), routed.router)
        updates = []
        for job, copy in zip(jobs, copies, strict=True):
            cursor = Cursor(
                len(copy.events), len(copy.tokens), len(copy.prompt_logprobs), bool(copy.prompt_tokens)
            )
            updates.append(cursor.advance(job, now()))
            self._feeds.serve(routed.router, routed.term, job, cursor)
        return updates

    async def stop(
        self,
        key: JobKey,
        incarnation: str,
        reason: StopReason,
        correlation_id: str,
        superseded_by: str | None = None,
    ) -> bool:
        """Stop one use of an id. If it has not arrived yet, it ends when it does. Returns whether it is live."""
        owner, job_id = key
        job = self._tracker.live(job_id, owner)
        if job is not None and job.incarnation == incarnation:
            if reason is StopReason.CLIENT:
                self._worker.cancel(job_id, correlation_id, owner)
            else:
                self._worker.stop(job, reason, superseded_by)
            return True
        if self._job(key, incarnation) is None and not self._has_record(key, incarnation):
            moment = now().mono
            stop = StopRequest(reason, moment, correlation_id, superseded_by)
            self._early.add((owner, incarnation), stop)
        elif reason is StopReason.CLIENT:
            self._cancelled_without_job(key, correlation_id, TargetState.FINISHED)
        return False

    async def stop_shared(self, shared: SharedStop, tell: bool) -> list[str]:
        """Stop the live jobs here that share a name. Returns their ids. `tell`: tell all routers, too, as such jobs may
        be between two workers, or at one that does not answer."""
        if tell:
            self._feeds.tell(shared)
        moment = now()
        jobs = [job for job in self._tracker if shared.is_for(job, moment)]
        stop = StopRequest(shared.reason, moment.mono, shared.correlation_id, shared.superseded_by)
        group = shared.name if shared.attribute == "group" else None
        self._worker.stop_together(
            [job for job in jobs if shared.superseded_by is None or not job.stop], stop, group
        )
        return [job.job_id for job in jobs]

    async def client_left(self, router: str, key: JobKey, incarnation: str) -> None:
        """The connection that executes a job is closed, at the router that serves it."""
        job = self._job(key, incarnation)
        if job is not None and job.live and self._feeds.served_by(job)[0] == router:
            self._nobody_serves(job)

    async def disown(self, router: str, incarnation: str, attempt: int | None) -> None:
        """Stop a job which a router does not have here although it serves the job, as far as is known here; or one of
        which the router withdraws this `attempt` to hand it over, as it was not answered in time. If that one has not
        arrived yet, it is refused when it does. The router learns nothing more of the job."""
        (job,) = [job for job in self._tracker if job.incarnation == incarnation] or (None,)
        if job is not None and self._feeds.served_by(job)[0] == router:
            self._feeds.of(router).unfollow(job)
            self._worker.stop(job, StopReason.DISCONNECT)
        elif job is None and attempt is not None:
            withdrawn = StopRequest(StopReason.DISCONNECT, now().mono)
            self._early.add((router, f"{incarnation}.{attempt}"), withdrawn)

    async def unread(self, router: str, key: JobKey, incarnation: str) -> bool:
        """The router serves a job that it has inherited, and nobody reads there. Returns whether another one serves it
        now; if there is none, the job is stopped unless it needs no client."""
        job = self._job(key, incarnation)
        if job is None or not job.live:
            return False
        if self._feeds.served_by(job)[0] not in (router, ""):
            return True
        passed_on = self._feeds.pass_on(router, job)
        if not passed_on:
            self._nobody_serves(job)
        return passed_on

    async def cancelled_lately(self, owner: str, job_ids: list[str]) -> StopRequest | None:
        """A recent client's cancel of one of these jobs."""
        return self._worker.cancelled_lately(job_ids, owner)

    async def tokenize(
        self, prompt: str, template: Template, correlation_id: str, owner: str
    ) -> Tokenized | Refusal:
        """The tokens of a prompt. Waits for the engine."""
        try:
            return await self._worker.tokenizing.prepare(prompt, template, correlation_id, owner)
        except JobError as error:
            return Refusal.of(error)

    # Looking.

    async def record(self, key: JobKey) -> Record | None:
        """The record of the latest job with an id here."""
        owner, job_id = key
        self._worker.forget_old()
        return self._tracker.record(job_id, owner)

    async def records(self, owner: str, limit: int) -> list[Record]:
        """An owner's records here."""
        self._worker.forget_old()
        return self._tracker.records(owner, limit)

    async def drop_events(self, key: JobKey, incarnation: str) -> None:
        """Drop the events of a job that has ended, here and at all routers: each may have a copy."""
        self._tracker.drop_events_of(key, incarnation)
        self._feeds.tell(DropNote(key, incarnation))

    async def metrics(self) -> bytes:
        """The worker's metrics."""
        return self._worker.metrics.render()

    # Keeping ids.

    async def claim(self, key: JobKey, claim: Claim, replaces: str | None) -> Verdict:
        """Claim an id for one use."""
        return self._keeper.claim(key, claim, now(), replaces)

    async def cancel(self, key: JobKey, correlation_id: str, up_to: int, parts: SharedStop) -> Known:
        """Carry out a client's cancel of the latest use of an id, unless it was granted here after `up_to` others: tell
        all routers, and stop the use's job if it is here, and its parts (`parts`) if it has any."""
        owner, job_id = key
        known = self._keeper.known(key, now())
        claim = known.claim
        if claim is None or known.order > up_to:
            return known
        self._feeds.tell(StopNote(key, claim.incarnation, correlation_id))
        if claim.parts:
            await self.stop_shared(parts, tell=True)
        job = self._tracker.live(job_id, owner)
        stopped = job is not None and job.incarnation == claim.incarnation
        if stopped:
            self._worker.cancel(job_id, correlation_id, owner)
        return replace(known, reached=True, stopped=stopped)

    async def remember(self, key: JobKey, correlation_id: str, since: float, log: bool) -> Known:
        """Remember a client's cancel of an id of which this keeper knew no use, for the first one.

        Args:
            key: owner and job id.
            correlation_id: the cancel's.
            since: the earliest time at which it can have been accepted, on this worker's clock.
            log: whether no other keeper logs it.
        """
        known = self._keeper.remember(key, StopRequest(StopReason.CLIENT, since, correlation_id), now())
        if known.claim is None and log:
            self._cancelled_without_job(key, correlation_id, TargetState.UNKNOWN)
        return known

    async def look(self, key: JobKey) -> Claim | None:
        """The latest use of an id."""
        return self._keeper.look(key)

    async def refused(self, key: JobKey, incarnation: str | None) -> None:
        """A request with this id was refused."""
        self._keeper.refused(key, incarnation, now())

    # Inside.

    def _job(self, key: JobKey, incarnation: str) -> Job | None:
        owner, job_id = key
        jobs = (self._tracker.live(job_id, owner), self._tracker.ended_job(job_id, owner))
        return next((job for job in jobs if job is not None and job.incarnation == incarnation), None)

    def _accepted_before(
        self, router: str, requests: Sequence[JobRequest], copies: Sequence[JobUpdate], owner: str
    ) -> list[Job] | None:
        """The jobs of a request that this router has sent before, unless it has withdrawn them since."""
        jobs = []
        for request, copy in zip(requests, copies, strict=True):
            job = self._job((owner, request.job_id), copy.incarnation)
            if job is None or (job.stop is not None and job.stop.reason is StopReason.DISCONNECT):
                return None
            if job.live and self._feeds.served_by(job)[0] != router:
                return None
            jobs.append(job)
        return jobs

    def _cancelled_without_job(self, key: JobKey, correlation_id: str, state: TargetState) -> None:
        owner, job_id = key
        narration.context.owner.set(owner)  # Of this call only: each runs in a context of its own.
        self._worker.cancel_without_job(job_id, correlation_id, state)

    def _has_record(self, key: JobKey, incarnation: str) -> bool:
        owner, job_id = key
        record = self._tracker.ended_record(job_id, owner)
        return record is not None and record["incarnation"] == incarnation

    def _routed(self, job: Job, routed: Routed) -> None:
        choice = routed.choice
        self._routes.routed(routed)
        self._narrator.emit(
            narration.Route(
                job_id=job.job_id,
                router=routed.router,
                why=choice.why,
                warm_blocks=choice.warm_blocks,
                blocks=choice.blocks,
                requeued=routed.requeued,
                tokens_out=job.tokens_out,
            ),
            correlation_id=job.correlation_id,
            owner=job.owner,
        )

    def _nobody_serves(self, job: Job) -> None:
        stream = self._worker.streams.of(job)
        stream.join()
        self._worker.reader_left(stream)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SEC)
            for job in self._feeds.expired(self._tracker.by_run):
                with contextlib.suppress(JobError):
                    self._nobody_serves(job)
