"""Starts an engine process before the server is imported: each takes a second, on different cores."""

import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from worker_orcd.protocol.framing import encode
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load

LLAMA_ENGINE = "worker_orcd.engine"
"""The module that is run as the engine process."""
STDERR = 2


class EarlyProcess:
    """A child process that is started without an event loop, but awaited in one."""

    def __init__(self, command: list[str], descriptors: list[int]) -> None:
        self._child = subprocess.Popen(  # noqa: S603  # Our own module.
            command, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=STDERR, start_new_session=True
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative if it was a signal; None while the process runs."""
        return self._child.returncode

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()

    def end(self) -> None:
        """Send SIGKILL, and wait for the end, which comes soon."""
        self._child.kill()
        self._child.wait()

    async def wait(self) -> int:
        """Wait for the end."""
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
    """An engine process that loads a model, and its connection to this process.

    Attributes:
        process: the engine's process.
        connection: the engine's socket. The first message is already sent.
        interrupt: the engine's interrupt byte.
        store: the file of the prefix store, which outlives this engine.
    """

    process: EarlyProcess
    connection: socket.socket
    interrupt: InterruptByte
    store: int | None

    @classmethod
    def start(cls, load: Load, store: int | None) -> "EarlyEngine":
        """Start the process and have it load the model.

        Raises:
            OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        interrupt = InterruptByte.create()
        with theirs:
            ours.sendall(encode(load))
            files = [theirs.fileno(), interrupt.fd, *([] if store is None else [store])]
            own = arguments(*files)
            process = EarlyProcess([sys.executable, "-m", LLAMA_ENGINE, *own], files)
        return cls(process, ours, interrupt, store)

    def end(self) -> None:
        """End the process, because the worker cannot start."""
        self.process.end()
        self.connection.close()


def arguments(connection: int, interrupt: int, store: int | None = None) -> tuple[str, ...]:
    """An engine's arguments: its descriptors, and the process that it belongs to."""
    own = ("--socket", str(connection), "--interrupt", str(interrupt), "--front", str(os.getpid()))
    return own if store is None else (*own, "--store", str(store))
