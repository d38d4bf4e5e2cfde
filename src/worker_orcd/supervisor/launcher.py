"""Starts the engines of one worker, one after the other. A spare process shortens the wait after an engine's death.

The spare process has imported an engine's modules and waits for its first message. It has neither settings nor a model,
so it is never out of date, and it takes only the memory of its modules.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from worker_orcd.protocol.framing import encode
from worker_orcd.protocol.messages import Load
from worker_orcd.supervisor.early import EarlyEngine
from worker_orcd.supervisor.engine import EngineListener
from worker_orcd.supervisor.local import LocalEngine
from worker_orcd.supervisor.proc import is_stopped

SPARE_AFTER_SEC = 2.0
"""Time from an engine's readiness to the start of a spare process, because the first jobs need the CPU."""
_DYING_SEC = 0.5


class EngineLauncher:
    """Starts engines, with the spare process if there is one."""

    def __init__(
        self,
        start: Callable[[], Awaitable[EarlyEngine]],
        *,
        first: EarlyEngine | None = None,
        keeps_spare: bool = True,
    ) -> None:
        """Prepare only; `launch` starts an engine.

        Args:
            start: starts a process that waits for its first message.
            first: the first engine, if it is already started and has its first message.
            keeps_spare: whether to keep a spare process.
        """
        self._start = start
        self._first = first
        self._keeps_spare = keeps_spare
        self._spare: EarlyEngine | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def launch(self, load: Load, listener: EngineListener) -> LocalEngine:
        """Have a process load the model: the first engine, the spare process, or a new one."""
        greeting = encode(load)  # May fail, which must happen before a process is started.
        if self._first is not None:
            first, self._first = self._first, None
            return await LocalEngine.adopt(first, listener)
        spare = await self._taken_spare()
        return await LocalEngine.adopt(spare or await self._start(), listener, greeting)

    def keep_spare(self) -> None:
        """Start a spare process soon, if there is none, because an engine is ready. A spare process that dies is
        replaced only when the next engine is ready."""
        if self._keeps_spare and (self._keeping is None or self._keeping.done()):
            self._keeping = asyncio.create_task(self._keep(), name="spare-engine")

    async def close(self) -> None:
        """End the spare process."""
        spare = await self._taken_spare()
        if spare is not None:
            await _end(spare)

    async def _keep(self) -> None:
        await asyncio.sleep(SPARE_AFTER_SEC)
        try:
            spare = await self._start()
        except OSError:
            return  # The next engine then starts more slowly. If it cannot be started either, it reports the reason.
        self._spare = spare
        await spare.process.wait()
        self._spare = None
        spare.disconnect()

    async def _taken_spare(self) -> EarlyEngine | None:
        """Take the spare process. None if there is no running one."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
        spare, self._spare = self._spare, None
        if spare is not None and (spare.process.returncode is not None or is_stopped(spare.process.pid)):
            await _end(spare)
            return None
        return spare


async def _end(spare: EarlyEngine) -> None:
    with contextlib.suppress(ProcessLookupError):
        spare.process.kill()
    with contextlib.suppress(TimeoutError):  # A process in uninterruptible sleep dies only when it wakes up.
        await asyncio.wait_for(spare.process.wait(), _DYING_SEC)
    spare.disconnect()
