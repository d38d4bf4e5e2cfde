"""The workers of a fleet as one router sees them: which there are, how they are, and what they report."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from worker_orcd.fleet.keepers import KEEPERS, keepers_of
from worker_orcd.fleet.wire import News, Refusal, WorkerState
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.job import JobKey
from worker_orcd.worker.now import now

POLL_SEC = 1.0
SILENT_AFTER_SEC = 1.0
"""A poll's answer may be so late. Then the worker counts as silent, until it answers again."""
AGAIN_SEC = 0.1
FAILED_AGAIN_SEC = 1.0
"""Time until a poll that failed unexpectedly is repeated: its failure is reported each time."""
CALL_SEC = 2.0
SLICE_SEC = 0.25
"""Patience is counted in pieces: a process that cannot run for a while uses up one of them, not all…"""
LAST_SEC = 0.02
"""… and then finds the answers that have come meanwhile, also in the last one."""
MAX_LOST = 1000
"""Dead workers that are remembered, beside those that are still listed."""


class PeerLost(Exception):
    """The worker's process is dead."""


class PeerSilent(Exception):
    """The worker has not answered in time. It may still do what it was asked."""


class Peer(Protocol):
    """A connection with one worker."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of its `WorkerHost`.

        Raises:
            PeerLost: its process is dead.
        """

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting, from any thread. The call may be lost."""


class Remote:
    """One worker."""

    def __init__(self, name: str, peer: Peer) -> None:
        self.name = name
        self.state: WorkerState | None = None
        self.answering = asyncio.Event()
        """Set unless its last answer to a poll is overdue; also when it is dead."""
        self.answering.set()
        self.failing = False
        """Whether its last poll failed unexpectedly."""
        self.seen = 0
        """Number of its last answer to a poll."""
        self.sent = 0
        """Jobs sent since its state came."""
        self.granted = 0
        """Uses of ids that it had granted as their keeper, when it reported last."""
        self._peer = peer

    async def call(self, method: str, *arguments: Any, patience_sec: float = CALL_SEC) -> Any:
        """Call a method of its `WorkerHost`.

        Raises:
            JobError: it refuses.
            PeerLost: its process is dead.
            PeerSilent: it does not answer in time.
        """
        calling = asyncio.ensure_future(self._peer.call(method, *arguments))
        try:
            while patience_sec > 0.0 and not calling.done():
                await asyncio.wait({calling}, timeout=min(patience_sec, SLICE_SEC))
                patience_sec -= SLICE_SEC
            if not calling.done():
                await asyncio.wait({calling}, timeout=LAST_SEC)
            if not calling.done():
                raise PeerSilent(self.name)
            answer = calling.result()
        finally:
            calling.cancel()
        if isinstance(answer, Refusal):
            raise answer.error()
        return answer

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting, from any thread. The call may be lost."""
        self._peer.send(method, *arguments)

    @property
    def silent(self) -> bool:
        """Whether it does not answer."""
        return not self.answering.is_set()

    @property
    def load(self) -> float:
        """Jobs by slots."""
        return (self.state.jobs + self.sent) / self.state.slots if self.state else 0.0


class PeersListener(Protocol):
    """Learns what happens to workers."""

    def joined(self) -> None:
        """Another worker is there."""

    def news(self, remote: Remote, news: News) -> None:
        """A worker reports."""

    def back(self, remote: Remote) -> None:
        """A worker that was silent answers again; some of its news may be lost."""

    def lost(self, remote: Remote) -> None:
        """A worker is dead."""

    def failed(self, remote: Remote, error: Exception) -> None:
        """A poll failed unexpectedly, at the worker or at its news. It is repeated."""


class Peers:
    """All workers that are alive as far as is known."""

    def __init__(self, router: str, listener: PeersListener) -> None:
        self._router = router
        self._listener = listener
        self._remotes: dict[str, Remote] = {}
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._lost_at: dict[str, float] = {}

    def __iter__(self) -> Any:
        return iter(tuple(self._remotes.values()))

    def __len__(self) -> int:
        return len(self._remotes)

    def get(self, name: str | None) -> Remote | None:
        """A worker that is alive."""
        return None if name is None else self._remotes.get(name)

    def has_lost(self, name: str) -> bool:
        """Whether a worker was found dead."""
        return name in self._lost_at

    def lost_sec(self, name: str) -> float:
        """How long ago a worker was found dead; infinite if it never was."""
        return now().mono - self._lost_at.get(name, float("-inf"))

    async def ask(
        self, method: str, *arguments: Any, patience_sec: float
    ) -> tuple[list[tuple[Remote, Any]], bool]:
        """Ask all workers for what some of them have; those that were silent lately only if no other one has it.

        Returns:
            The answers that are not None, and whether every worker has answered.
        """
        found: list[tuple[Remote, Any]] = []
        answered = 0
        for silent in (False, True):
            asked = [remote for remote in self if remote.silent is silent]
            calls = [remote.call(method, *arguments, patience_sec=patience_sec) for remote in asked]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for remote, answer in zip(asked, answers, strict=True):
                if isinstance(answer, BaseException):
                    if not isinstance(answer, PeerLost | PeerSilent):
                        raise answer
                    continue
                answered += 1
                if answer is not None:
                    found.append((remote, answer))
            if found:
                break
        return found, bool(self._remotes) and answered >= len(self._remotes)

    def keepers(self, key: JobKey) -> list[Remote]:
        """The workers that answer, in the order in which they keep this id."""
        answering = [name for name, remote in self._remotes.items() if not remote.silent]
        return [self._remotes[name] for name in keepers_of(key, answering)]

    def keeps(self, remote: Remote, key: JobKey) -> bool:
        """Whether a worker is one of an id's keepers, even if all workers answer."""
        return remote.name in keepers_of(key, self._remotes)[:KEEPERS]

    def add(self, found: Mapping[str, Peer]) -> None:
        """These workers are listed. Those that are dead are noticed by their answers, once each."""
        unlisted = [name for name in self._lost_at if name not in found]
        for name in unlisted[: max(0, len(unlisted) - MAX_LOST)]:
            del self._lost_at[name]
        new = [name for name in found if name not in self._remotes and name not in self._lost_at]
        for name in new:
            remote = self._remotes[name] = Remote(name, found[name])
            self._polls[name] = asyncio.create_task(self._poll(remote), name=f"poll {name}")
        if new:
            self._listener.joined()

    def renew_leases(self) -> None:
        """Tell all workers that this router is alive, except one whose polls fail by a defect. From any thread."""
        for remote in tuple(self._remotes.values()):
            if not remote.failing:  # Its jobs get no news.
                remote.send("renew_lease", self._router)

    def close(self) -> None:
        """Ask no more."""
        for task in self._polls.values():
            task.cancel()

    async def _poll(self, remote: Remote) -> None:
        while True:
            try:
                await self._poll_once(remote)
            except PeerLost:
                self._lose(remote)
                return
            except Exception as error:  # noqa: BLE001  # Whatever it is, without polls the worker would be as good as dead.
                if not isinstance(error, PeerSilent | JobError):
                    remote.failing = True
                    self._listener.failed(remote, error)
                remote.answering.clear()
                await asyncio.sleep(FAILED_AGAIN_SEC if remote.failing else AGAIN_SEC)

    async def _poll_once(self, remote: Remote) -> None:
        wait_sec = 0.0 if remote.silent else POLL_SEC  # Know at once that it answers again.
        news: News = await remote.call(
            "poll", self._router, wait_sec, remote.seen, patience_sec=POLL_SEC + SILENT_AFTER_SEC
        )
        remote.seen, remote.granted = news.number, news.granted
        if news.state is not None:
            remote.state, remote.sent = news.state, 0
        if remote.silent:
            remote.answering.set()
            self._listener.back(remote)
        self._listener.news(remote, news)
        remote.failing = False

    def _lose(self, remote: Remote) -> None:
        del self._remotes[remote.name], self._polls[remote.name]
        remote.answering.set()  # For those who wait: they learn that it is dead.
        self._lost_at[remote.name] = now().mono
        self._listener.lost(remote)
