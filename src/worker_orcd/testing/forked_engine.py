"""The scripted engine, forked off the front that launches it: the same process, without a second's import."""

import asyncio
import os
import signal
from collections.abc import Sequence
from itertools import count

from worker_orcd.testing.forked import close_all_but, run_and_exit

_COMES_BACK_SEC = 0.7
_STARTS = count()


class ForkedEngine:
    """A child of this process, as the supervisor sees a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    def kill(self) -> None:
        """SIGKILL."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end. Returns the exit code, negative if it was a signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


async def fork_engine(module: str, arguments: Sequence[str], descriptors: Sequence[int]) -> ForkedEngine:
    """Run a module in a child that has these descriptors, as `supervisor.local.start_module` does."""
    # A first one is there at once. A later one takes as long as an interpreter's start, so that who looks now and then
    # can see that the one before is gone.
    if next(_STARTS):
        await asyncio.sleep(_COMES_BACK_SEC)
    pid = os.fork()
    if pid == 0:
        # Not a session: Linux shares CPU time out between sessions, and tests starve an engine by neighbours of theirs.
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        close_all_but(descriptors)
        run_and_exit(module, arguments)
    return ForkedEngine(pid)
