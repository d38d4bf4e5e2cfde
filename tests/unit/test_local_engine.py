"""The order of message and interrupt byte: no stop is lost, whatever the timing."""

import asyncio
import os
from types import SimpleNamespace
from typing import cast

from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import FromEngine
from worker_orcd.supervisor.engine import Death
from worker_orcd.supervisor.local import LocalEngine


def this_process() -> asyncio.subprocess.Process:
    """A stand-in for a process, with the id of a live one."""
    return cast(asyncio.subprocess.Process, SimpleNamespace(pid=os.getpid()))


class FullSocket(asyncio.Transport):
    """A transport whose socket is full for now."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it until there is room."""
        self.waiting += bytes(data)

    def get_write_buffer_size(self) -> int:
        """Bytes that wait."""
        return len(self.waiting)

    def is_closing(self) -> bool:
        """Never here."""
        return False


class Nobody:
    """Listens to nothing."""

    def on_message(self, message: FromEngine) -> None:
        """Nothing."""

    def lost(self, death: Death) -> None:
        """Nothing."""


def test_the_byte_is_not_set_before_the_stop_is_in_the_socket() -> None:
    """Otherwise the engine would clear the byte, find no stop, and compute on."""

    async def stop_with_a_full_socket() -> None:
        byte, socket = InterruptByte.create(), FullSocket()
        engine = LocalEngine(this_process(), byte, Nobody())
        engine.connection_made(socket)
        engine.stop(1)
        await until(lambda: len(engine._interrupts_when_flushed) == 2)  # Both of its times have come.
        assert not byte.is_set()
        assert not byte.is_overdue()
        socket.waiting = b""
        engine.resume_writing()
        assert byte.is_set()
        assert byte.is_overdue()
        engine._interrupter.close()
        byte.close()

    asyncio.run(stop_with_a_full_socket())


def test_a_stop_interrupts_first_any_step_and_later_also_a_protected_one() -> None:
    """With two bytes, each set when its time has come."""

    async def stop_unheard() -> None:
        byte, socket = InterruptByte.create(), FullSocket()
        engine = LocalEngine(this_process(), byte, Nobody())
        engine.connection_made(socket)
        engine.stop(1)
        socket.waiting = b""
        assert not byte.is_set()
        await until(byte.is_set)
        await until(byte.is_overdue)
        byte.clear()
        assert not byte.is_set()
        assert not byte.is_overdue()
        byte.close()

    asyncio.run(stop_unheard())


async def until(ready: object) -> None:
    """Wait for a condition, with a deadline."""
    assert callable(ready)
    async with asyncio.timeout(30):
        while not ready():  # noqa: ASYNC110  # The byte has no event.
            await asyncio.sleep(0.001)
