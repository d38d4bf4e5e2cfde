"""Tasks that nobody waits for: kept until they are done, their failures logged."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from worker_orcd import narration
from worker_orcd.fleet.peers import PeerLost, PeerSilent


class Tasks:
    """The background tasks of one router."""

    def __init__(self, narrator: narration.Narrator) -> None:
        self._narrator = narrator
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it in the background."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def try_to(self, call: Coroutine[Any, Any, Any]) -> None:
        """Call a worker, if it can be reached."""
        self.spawn(_reaching(call))

    def close(self) -> None:
        """Cancel them all."""
        for task in self._running:
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._narrator.emit(
                narration.Error.from_exception(error, code="INTERNAL", message="a background task failed")
            )


async def _reaching(call: Coroutine[Any, Any, Any]) -> None:
    try:
        await call
    except (PeerLost, PeerSilent):
        return


async def answers(calls: "list[Coroutine[Any, Any, Any]]") -> list[Any]:
    """The answers of several workers; of those that cannot be reached, none."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException) and not isinstance(one, PeerLost | PeerSilent):
            raise one
    return [one for one in done if not isinstance(one, BaseException)]
