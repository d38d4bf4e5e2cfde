"""An engine process, and how it is started before the options are read and the server is imported.

Each takes about a second, on different cores. So this module imports little.
"""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.supervisor.prefix_memory import unsized_prefix_memory

LLAMA_ENGINE = "worker_orcd.engine"
"""The module that is run as the engine process."""
STDERR = 2


_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"
WAITING = {"GOMP_SPINCOUNT": "3000", "OMP_WAIT_POLICY": "active"}
"""How the threads of GNU OpenMP wait for each other: a thread looks 3,000 times whether it has work, and then sleeps
(by default after milliseconds). In a process with more such threads than cores, as with a side pool, it looks 1,000
times if it waits actively, and 100 times by default. docs/performance.md has what each costs."""


def environment() -> dict[str, str]:
    """An engine's environment: ours, with variables that the user may have set otherwise.

    glibc asks for huge pages for large allocations: hundreds of megabytes of cells are then cleared, and given back at
    an engine's death, in fewer pieces.

    A compute thread that waits for another one soon sleeps. By default it would keep its core for milliseconds, while
    the other one, without which no operation ends, waits for a core that any other process has.
    """
    own = os.environ.get(_TUNABLES, "")
    tunables = own if _HUGE_PAGES in own else ":".join(filter(None, (own, f"{_HUGE_PAGES}=1")))
    waiting = {} if os.environ.keys() & WAITING.keys() else WAITING
    return {**os.environ, **waiting, _TUNABLES: tunables}


class EngineProcess(Protocol):
    """A child process."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""

    def kill(self) -> None:
        """SIGKILL."""

    async def wait(self) -> int:
        """Wait for the end."""


class EarlyProcess:
    """A child process that is started without an event loop, but awaited in one."""

    def __init__(self, command: list[str], descriptors: list[int]) -> None:
        self._child = subprocess.Popen(  # noqa: S603  # Our own module.
            command,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            start_new_session=True,
            env=environment(),
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._child.poll()

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()

    async def wait(self) -> int:
        """Wait for the end."""
        import asyncio  # noqa: PLC0415  # It takes a tenth of a second, and the start needs none of it.

        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        descriptor = os.pidfd_open(self.pid)
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self._child.wait()


@dataclass(frozen=True, slots=True)
class EarlyEngine:
    """An engine process that loads a model, or waits for its first message, and its connection to this process.

    Attributes:
        process: the engine's process.
        connection: the engine's socket.
        interrupt: the engine's interrupt byte.
        store: the file of the prefix store, which outlives this engine.
    """

    process: EngineProcess
    connection: socket.socket
    interrupt: InterruptByte
    store: int | None = None

    @classmethod
    def start(cls) -> "EarlyEngine":
        """Start the process without an event loop. It waits for its first message. Its store has no size yet.

        Raises:
            OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        interrupt = InterruptByte.create()
        store = unsized_prefix_memory()
        with theirs:
            files = [theirs.fileno(), interrupt.fd, store]
            try:
                process = EarlyProcess([sys.executable, "-m", LLAMA_ENGINE, *arguments(*files)], files)
            except BaseException:
                ours.close()
                interrupt.close()
                os.close(store)
                raise
        return cls(process, ours, interrupt, store)

    def end(self) -> None:
        """End a process that was started without an event loop, because the worker cannot start."""
        self.process.kill()
        with suppress(ChildProcessError):  # It was dead already.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        assert self.process.returncode is not None  # noqa: S101  # Asked for, so that no zombie is left.
        self.disconnect()
        if self.store is not None:
            os.close(self.store)

    def disconnect(self) -> None:
        """Close the front's side of the connection."""
        self.connection.close()
        self.interrupt.close()


def arguments(connection: int, interrupt: int, store: int | None = None) -> tuple[str, ...]:
    """An engine's arguments: its descriptors, and its parent's process id."""
    own = ("--socket", str(connection), "--interrupt", str(interrupt), "--front", str(os.getpid()))
    return own if store is None else (*own, "--store", str(store))
