"""What routers follow at one worker, and the lease that they have on its jobs by asking for it.

A router polls each worker all the time: a poll is answered when there is news, or after a second. What came up
between two answers is in the next one, so a step of the engine costs one message for each router that follows any of
its jobs, and a router that is slow gets larger answers, not more of them. Nothing is kept for it beyond its last
answer, until it has that, and a mark for each job that has changed: the news itself is in the job. A router that has
neither asked nor renewed its lease (`renewal.py`: it may be too busy to ask) for `LEASE_SEC` is dead or cut off. Time
in which this process could not run itself does not count.

A message costs both processes more than what is in it. So tokens wait up to `LONGEST_PAUSE_SEC` after the router's last
answer and travel together, if the router follows many jobs, or takes long to ask again since it or its machine is busy.
Starts and ends do not wait. So a busy router has fewer messages to handle, and time for cancels.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from worker_orcd.fleet.routing import MAX_REMEMBERED
from worker_orcd.fleet.wire import DropNote, News, Note, ServeNote, SharedStop, StopNote, WorkerState
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.replication import Cursor
from worker_orcd.jobs.tracker import RECORDS_KEPT
from worker_orcd.protocol.messages import Ready
from worker_orcd.supervisor.engine import Death
from worker_orcd.worker.now import now
from worker_orcd.worker.observer import Observer, StopRequested

LEASE_SEC = 3.0
SWEEP_SEC = 0.25
"""How often leases are looked at."""
STATE_EVERY_SEC = 0.25
"""Least time between two reports of the worker's state to one router."""
PAUSE_SEC = 0.003
"""Least time between two answers that report only tokens, for each job that the router follows."""
TURNAROUNDS = 3.0
"""… and for the time that the router took to ask again after its last answer."""
LONGEST_PAUSE_SEC = 0.25
MAX_EVENTS = 500
"""Log events that wait for a router; the oldest are dropped."""


class Feed:
    """One router's."""

    def __init__(self, warm: Iterable[bytes] = (), notes: Iterable[Note] = ()) -> None:
        """`warm`: blocks of prompts that other routers have sent here. `notes`: what the router may have missed."""
        self.polls = 0
        """Polls that wait for news now."""
        self._silent_sec = 0.0
        self._followed: dict[int, tuple[Job, Cursor]] = {}
        self._changed: dict[int, None] = {}
        self._notes: list[tuple[Note, float]] = [(note, now().mono) for note in notes]
        """… and since when each waits."""
        self._events: deque[tuple[dict[str, Any], str | None]] = deque(maxlen=MAX_EVENTS)
        self._warm = deque(warm, maxlen=MAX_REMEMBERED)
        self._last: News | None = None
        self._news = asyncio.Event()
        self._news.set()  # The first poll is answered at once, with the worker's state.
        self._urgent = asyncio.Event()
        self._answered_at = 0.0
        self._turnaround_sec = 0.0
        self._state_at = 0.0

    def asked(self) -> None:
        """The router asks."""
        self.polls += 1
        if self._answered_at:
            self._turnaround_sec = now().mono - self._answered_at

    def follow(self, job: Job, cursor: Cursor) -> None:
        """Report what happens to a job from here on."""
        if job.live:
            self._followed[job.run] = (job, cursor)

    def unfollow(self, job: Job) -> None:
        """Report nothing more of a job."""
        self._followed.pop(job.run, None)
        self._changed.pop(job.run, None)

    def follows(self, job: Job) -> bool:
        """Whether the router follows a job."""
        return job.run in self._followed

    def changed(self, job: Job, *, urgent: bool) -> None:
        """A job has news."""
        if job.run in self._followed:
            self._changed[job.run] = None
            self._news.set()
            if urgent:
                self._urgent.set()

    @property
    def alive(self) -> bool:
        """Whether the router has asked or renewed its lease lately."""
        return self.polls > 0 or self._silent_sec <= LEASE_SEC

    def renew(self) -> None:
        """The router is alive."""
        self._silent_sec = 0.0

    def not_renewed(self, sec: float) -> None:
        """Nothing was received from it for so much longer."""
        self._silent_sec += sec

    def note(self, note: Note) -> None:
        """Tell the router."""
        self._notes.append((note, now().mono))
        self._news.set()
        self._urgent.set()

    def event(self, event: dict[str, Any], owner: str | None) -> None:
        """Pass on a log event, with the next news."""
        self._events.append((event, owner))

    def state_changed(self) -> None:
        """Report the worker's state with the next news, and at once."""
        self._state_at = 0.0
        self._news.set()
        self._urgent.set()

    def warm(self, chain: Iterable[bytes]) -> None:
        """Tell the router where a conversation is whose next turn it may get, soon."""
        self._warm.extend(chain)
        if self._warm:
            self._news.set()

    async def wait(self, sec: float, seen: int) -> None:
        """Wait for news, and if it is not urgent, for more of it; not if the last answer was lost."""
        if self.lost(seen) is not None:
            return
        if await _within(self._news, sec):
            pause_sec = max(PAUSE_SEC * len(self._followed), TURNAROUNDS * self._turnaround_sec)
            pause_sec = min(pause_sec, LONGEST_PAUSE_SEC)
            await _within(self._urgent, self._answered_at + pause_sec - now().mono)

    def lost(self, seen: int) -> News | None:
        """The last answer, if the router that asks has not got it: its last one was `seen`."""
        if self._last is None or self._last.number != seen + 1:
            return None
        late_sec = now().mono - self._answered_at
        return replace(self._last, notes=tuple(_after(note, late_sec) for note in self._last.notes))

    def take(self, seen: int, state: Callable[[], WorkerState], serves: Callable[[Job], bool]) -> News:
        """All news. A job that has ended is followed no longer. `serves`: whether the router serves a job."""
        self._news.clear()
        self._urgent.clear()
        changed, self._changed = self._changed, {}
        updates, others = [], []
        moment = now()
        self._answered_at = moment.mono
        for run in changed:
            job, cursor = self._followed[run]
            updates.append(cursor.advance(job, moment))
            if not serves(job):
                others.append(job.incarnation)
            if not job.live:
                del self._followed[run]
        waiting, self._notes = self._notes, []
        notes = tuple(_after(note, moment.mono - since) for note, since in waiting)
        events, warm = tuple(self._events), tuple(self._warm)
        self._events.clear()
        self._warm.clear()
        due = moment.mono - self._state_at >= STATE_EVERY_SEC
        if due:
            self._state_at = moment.mono
        shown = state() if due else None
        self._last = News(tuple(updates), notes, events, shown, warm, frozenset(others), seen + 1)
        return self._last


def _after(note: Note, waited_sec: float) -> Note:
    return note.after(waited_sec) if isinstance(note, SharedStop) else note


async def _within(event: asyncio.Event, sec: float) -> bool:
    """Wait for an event. Returns whether it came in time."""
    try:
        async with asyncio.timeout(sec):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Feeds(Observer):
    """The feeds of all routers, and which router serves each job's own client."""

    def __init__(self, state: Callable[[], WorkerState]) -> None:
        self._feeds: dict[str, Feed] = {}
        self._state = state
        self._serves: dict[int, tuple[str, int]] = {}
        """Router and term of each job."""
        self._warm: deque[bytes] = deque(maxlen=MAX_REMEMBERED)
        """The latest blocks of prompts, for routers that come."""
        self._dropped: deque[DropNote] = deque(maxlen=RECORDS_KEPT)
        """The latest of these notes, for routers that come: one that was cut off for a while still has the events."""

    def of(self, router: str) -> Feed:
        """A router's feed."""
        feed = self._feeds.get(router)
        if feed is None:
            feed = self._feeds[router] = Feed(self._warm, self._dropped)
        return feed

    async def poll(self, router: str, wait_sec: float, seen: int) -> News:
        """News for a router, as soon as there is any; the last answer again if it has not `seen` that."""
        feed = self.of(router)
        feed.asked()
        try:
            await feed.wait(wait_sec, seen)
        finally:
            feed.polls -= 1
            feed.renew()
        return feed.lost(seen) or feed.take(seen, self._state, lambda job: self.served_by(job)[0] == router)

    def serve(self, router: str, term: int, job: Job, cursor: Cursor) -> None:
        """The router serves the client whose request this job is."""
        self._serves[job.run] = (router, term)
        self.of(router).follow(job, cursor)

    def served_by(self, job: Job) -> tuple[str, int]:
        """The router that serves a job (empty: none does), and its term."""
        return self._serves.get(job.run, ("", 0))

    def renew(self, router: str) -> None:
        """A router is alive."""
        if (feed := self._feeds.get(router)) is not None:
            feed.renew()

    def is_alive(self, router: str) -> bool:
        """Whether a router is alive."""
        feed = self._feeds.get(router)
        return feed is not None and feed.alive

    def warm(self, chain: Iterable[bytes], router: str) -> None:
        """Tell the other routers that this one has sent a prompt with these blocks."""
        blocks = tuple(chain)
        self._warm.extend(blocks)
        for name, feed in self._feeds.items():
            if name != router:
                feed.warm(blocks)

    def tell(self, note: StopNote | SharedStop | DropNote) -> None:
        """Tell all routers."""
        if isinstance(note, DropNote):
            self._dropped.append(note)
        for feed in self._feeds.values():
            feed.note(note)

    def log(self, event: dict[str, Any], owner: str | None) -> None:
        """Pass a log event on to all routers."""
        for feed in self._feeds.values():
            feed.event(event, owner)

    def expired(self, live: Callable[[int], Job | None]) -> Iterator[Job]:
        """Drop the routers that are gone, and have others serve their jobs. Yields the live jobs that nobody serves
        now: those whose clients have not come back, unless they go on without one. Called every `SWEEP_SEC`; when it
        comes later, this process did not run, and no message was received."""
        for feed in self._feeds.values():
            feed.not_renewed(SWEEP_SEC)
        gone = [name for name, feed in self._feeds.items() if not feed.alive]
        for name in gone:
            del self._feeds[name]
        for run, (router, term) in list(self._serves.items()):
            job = live(run)
            if job is None:
                del self._serves[run]
            elif router in gone or not router:
                heir = self._follower(job)
                needs_client = job.request.on_disconnect == "cancel"
                if heir is None and not needs_client:
                    heir = next(iter(self._feeds), None)
                if heir is not None:
                    self._pass_on(job, heir)
                    continue
                if needs_client:
                    del self._serves[run]
                else:
                    self._serves[run] = ("", term)  # Until there is a router.
                if router:
                    yield job

    def pass_on(self, router: str, job: Job) -> bool:
        """Have another router that follows a job serve it instead of this one. Returns whether there is any."""
        heir = self._follower(job, besides=router)
        if heir is None:
            return False
        self._feeds[router].unfollow(job)
        self._pass_on(job, heir)
        return True

    def _pass_on(self, job: Job, heir: str) -> None:
        _, term = self.served_by(job)
        self._serves[job.run] = (heir, term + 1)
        self._feeds[heir].note(ServeNote(job.key, job.incarnation, term + 1))

    def _follower(self, job: Job, besides: str = "") -> str | None:
        """A router that follows a job, for a client that came back."""
        following = (name for name, feed in self._feeds.items() if feed.follows(job) and name != besides)
        return next(following, None)

    # The worker.

    def _state_changed(self) -> None:
        for feed in self._feeds.values():
            feed.state_changed()

    def loaded(self, ready: Ready) -> None:  # noqa: ARG002  # as `Observer` passes
        """Report the state."""
        self._state_changed()

    def restarted(self, pid: int | None, restarts: int, lost_at: float) -> None:  # noqa: ARG002
        """Report the state."""
        self._state_changed()

    def lost(self, death: Death, jobs: Sequence[Job]) -> None:  # noqa: ARG002
        """Report the state."""
        self._state_changed()

    def draining(self, running: int, queued: int, drain_sec: float) -> None:  # noqa: ARG002
        """Report the state: routers send no more jobs."""
        self._state_changed()

    # What happens to jobs.

    def stop_requested(self, request: StopRequested) -> None:
        """Report it."""
        if request.target.job is not None:
            self._changed(request.target.job, urgent=False)  # Its end comes in a moment.

    def _changed(self, job: Job, *, urgent: bool = True) -> None:
        for feed in self._feeds.values():
            feed.changed(job, urgent=urgent)

    def measured(self, job: Job) -> None:
        """Report it."""
        self._changed(job)

    def started(self, job: Job) -> None:
        """Report it."""
        self._changed(job)

    def progress(self, job: Job) -> None:
        """Report it."""
        self._changed(job, urgent=False)

    def token(self, job: Job, previous_at: float | None, *, generated: bool) -> None:  # noqa: ARG002  # as `Observer` passes
        """Report it: the first token at once."""
        self._changed(job, urgent=previous_at is None)

    def preempted(self, job: Job) -> None:
        """Report it."""
        self._changed(job)

    def ended(self, job: Job) -> None:
        """Report it."""
        self._changed(job)
