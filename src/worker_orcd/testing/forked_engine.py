"""The scripted engine, forked from the front that launches it, which saves a second of imports."""

import asyncio
import os
import signal
from collections.abc import Sequence
from itertools import count

from worker_orcd.testing.forked import close_all_but, run_and_exit

_COMES_BACK_SEC = 0.7
_STARTS = count()


class ForkedEngine:
    """A child process, with the supervisor's interface of a process."""

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
        """Wait for the end. Returns the exit code, negative for a signal."""
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
    """Run a module in a child that has these descriptors, like `supervisor.local.start_module`."""
    # The first engine starts at once. A later one takes as long as an interpreter's start, so that tests which poll can
    # observe the time without an engine.
    if next(_STARTS):
        await asyncio.sleep(_COMES_BACK_SEC)
    pid = os.fork()
    if pid == 0:
        # Not a new session: Linux divides CPU time among sessions, and tests starve an engine with other processes.
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        close_all_but(descriptors)
        run_and_exit(module, arguments)
    return ForkedEngine(pid)
