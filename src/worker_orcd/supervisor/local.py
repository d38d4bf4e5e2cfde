"""An engine as a child process on this machine, with a socketpair and an interrupt byte."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from worker_orcd.protocol.framing import BrokenFrame, encode, front_side
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Begin, Drop, Message, Ping, Stop, Stopped, Submit, Tokenize
from worker_orcd.supervisor.early import (
    LLAMA_ENGINE,
    STDERR,
    EarlyEngine,
    EngineProcess,
    arguments,
    environment,
)
from worker_orcd.supervisor.engine import Death, EngineListener
from worker_orcd.supervisor.interrupter import Interrupter
from worker_orcd.supervisor.liveness import Activity
from worker_orcd.supervisor.proc import ProcessActivity

_CLOSING_SEC = 0.5
_DYING_SEC = 0.1


StartModule = Callable[[str, Sequence[str], Sequence[int]], Awaitable[EngineProcess]]
"""Runs a Python module with these arguments and descriptors as a child process, in a new session."""


async def start_module(module: str, arguments: Sequence[str], descriptors: Sequence[int]) -> EngineProcess:
    """Run the module in a new interpreter."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        pass_fds=descriptors,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=STDERR,
        start_new_session=True,
        env=environment(),
    )


async def start_process(
    module: str = LLAMA_ENGINE, start: StartModule = start_module, store: int | None = None
) -> EarlyEngine:
    """Start an engine process, which waits for its first message.

    Args:
        module: the Python module to run, which implements `worker_orcd.protocol`.
        start: starts the module.
        store: the file of the prefix store, which outlives this engine.
    """
    ours, theirs = socket.socketpair()
    interrupt = InterruptByte.create()
    try:
        files = [theirs.fileno(), interrupt.fd, *([] if store is None else [store])]
        return EarlyEngine(await start(module, arguments(*files), files), ours, interrupt, store)
    except BaseException:
        ours.close()
        interrupt.close()
        raise
    finally:
        theirs.close()


class LocalEngine(asyncio.Protocol):
    """One engine process."""

    def __init__(self, process: EngineProcess, interrupt: InterruptByte, listener: EngineListener) -> None:
        self._process = process
        self._activity = ProcessActivity(process.pid)
        self._interrupt = interrupt
        self._listener = listener
        self._reader = front_side()
        self._transport: asyncio.Transport | None = None
        self._interrupts_when_flushed: set[Callable[[], None]] = set()
        self._interrupter = Interrupter(
            asyncio.get_running_loop().call_later,
            lambda: self._when_flushed(interrupt.set),
            lambda: self._when_flushed(interrupt.set_overdue),
        )
        self._death: asyncio.Task[None] | None = None
        self._killed_because: str | None = None

    @classmethod
    async def adopt(
        cls, started: EarlyEngine, listener: EngineListener, greeting: bytes = b""
    ) -> "LocalEngine":
        """Connect to a started process.

        Args:
            started: the process.
            listener: receives the engine's messages and its death.
            greeting: the first message, if it has not been sent yet.
        """
        process, ours, interrupt = started.process, started.connection, started.interrupt
        ours.setblocking(False)
        engine = cls(process, interrupt, listener)
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: engine, sock=ours)
        except BaseException:
            engine._kill()
            ours.close()
            interrupt.close()
            raise
        # With these limits, `resume_writing` means that every byte is in the socket.
        transport.set_write_buffer_limits(high=0, low=0)
        engine._death = asyncio.create_task(engine._watch(), name="engine-watch")
        transport.write(greeting)
        return engine

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    def prepare(self, message: Submit | Tokenize) -> None:
        """Have a prompt rendered and tokenized."""
        self._send(message)

    def drop(self, run: int) -> None:
        """Have the engine drop a prompt."""
        self._send(Drop(run))

    def begin(self, message: Begin) -> None:
        """Have a job generated."""
        self._send(message)

    def stop(self, run: int) -> None:
        """Send the stop. The interrupt byte is set later, unless the engine confirms the stop soon by itself."""
        self._send(Stop(run))
        self._interrupter.stop_sent(run)

    def ping(self, runs: tuple[int, ...]) -> None:
        """Ping the engine."""
        self._send(Ping(runs))

    def activity(self) -> Activity | None:
        """The activity of the engine's threads so far."""
        return self._activity.look()

    def kill(self, why: str) -> None:
        """Send SIGKILL, which also ends a stopped or hung process."""
        self._killed_because = f"it was killed because {why}"
        self._kill()

    async def close(self) -> None:
        """Close the socket, which makes the engine exit; kill the engine if it does not. The wait for its death is
        bounded, because a process in uninterruptible sleep dies only when it wakes up."""
        if self._transport is not None:
            self._transport.close()
        if self._death is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._death), _CLOSING_SEC)
                return
            self._kill()
            await asyncio.wait([self._death], timeout=_DYING_SEC)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in effect.

    def data_received(self, data: bytes) -> None:
        """Deliver the engine's messages. Bytes that are not a message mean that the engine is broken."""
        try:
            messages = self._reader.feed(data)
        except BrokenFrame as error:
            self._killed_because = f"it sent a broken frame: {error}"
            self._kill()
            return
        try:
            for message in messages:
                if isinstance(message, Stopped):
                    self._interrupter.stopped(message.run)
                self._listener.on_message(message)
        except Exception:
            # The message is invalid in this state. The next engine starts from a clean state.
            self.kill("it sent a message that is invalid in this state")
            raise

    def resume_writing(self) -> None:
        """All messages are in the socket."""
        for set_byte in self._interrupts_when_flushed:
            set_byte()
        self._interrupts_when_flushed.clear()

    # The process.

    def _when_flushed(self, set_byte: Callable[[], None]) -> None:
        """Set the byte once the message is in the socket, so that an engine that reads the byte finds the message."""
        if self._transport is not None and self._transport.get_write_buffer_size() > 0:
            self._interrupts_when_flushed.add(set_byte)
        else:
            set_byte()

    def _send(self, message: Message) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def _kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _watch(self) -> None:
        """Wait for the engine's death, deliver its last messages, then report the death."""
        code = await self._process.wait()
        await asyncio.sleep(0)
        if self._transport is not None:
            self._transport.abort()
        self._interrupter.close()
        self._interrupts_when_flushed.clear()
        self._interrupt.close()
        self._listener.lost(_death(self._process.pid, code, self._killed_because))


def _death(pid: int, code: int, killed_because: str | None) -> Death:
    """A process's death by its return code; a negative code is the number of a signal."""
    if code >= 0:
        return Death(killed_because or f"it exited with code {code}", pid, exit_code=code)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return Death(killed_because or f"it died of {name}", pid, signal=name)
