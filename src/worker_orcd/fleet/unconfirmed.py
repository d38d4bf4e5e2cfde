"""Calls that workers have not confirmed, mostly stops: each is sent again until its worker answers, or is dead.

Otherwise a job whose stop was lost would run on without a router that has it.
"""

import asyncio
from typing import Any

from worker_orcd.fleet.peers import PeerLost, PeerSilent, Remote
from worker_orcd.fleet.tasks import Tasks


class Unconfirmed:
    """The calls of one router that have not been confirmed."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._sending: dict[tuple[Any, ...], asyncio.Task[None]] = {}

    def send(self, remote: Remote, method: str, *arguments: Any) -> asyncio.Task[None]:
        """Call a method of a worker: at once, and again when the worker answers again, until it has confirmed the call.

        Returns:
            Done when the worker has confirmed it, or is dead. A call that is being sent is not sent a second time.
        """
        message = (remote.name, method, *arguments)
        sending = self._sending.get(message)
        if sending is None:
            sending = self._sending[message] = self._tasks.spawn(_send(remote, method, *arguments))
            sending.add_done_callback(lambda _: self._sending.pop(message))
        return sending


async def _send(remote: Remote, method: str, *arguments: Any) -> None:
    while True:
        try:
            await remote.call(method, *arguments)
        except PeerSilent:
            await remote.answering.wait()
        except PeerLost:
            return
        else:
            return
