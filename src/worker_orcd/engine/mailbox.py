"""The engine's end of the socket. Messages can be read at any time, also while prompts are being prepared."""

import os
import select
import socket
import threading
from collections import deque
from queue import SimpleQueue

from worker_orcd.engine.prompts import Prompts
from worker_orcd.engine.run import Run
from worker_orcd.protocol.framing import BrokenFrame, encode, engine_side
from worker_orcd.protocol.messages import (
    Begin,
    Drop,
    FromEngine,
    Load,
    Message,
    Ping,
    Pong,
    Stop,
    Submit,
    Tokenize,
)

_CHUNK = 1 << 18


class Mailbox:
    """Sorts what arrives: runs and stops for the loop, prompts to prepare for the side thread.

    Both the reader thread and the loop may take bytes off the socket (`_pump`, under a lock): the loop must see
    what arrived before it cleared the interrupt byte, whether or not the reader thread had its turn. When the
    front goes away, the process ends at once, whatever it is computing.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = engine_side()
        self._pumping = threading.Lock()
        self._sending = threading.Lock()
        self._arrived = threading.Condition()
        self._for_loop: deque[Run | Stop | Ping] = deque()
        self._looping = False
        self._progressed = True
        self._loads: SimpleQueue[Load] = SimpleQueue()
        self.prompts = Prompts()
        threading.Thread(target=self._read, name="mailbox", daemon=True).start()

    def first(self) -> Load:
        """Wait for the message that comes first."""
        return self._loads.get()

    def load_progressed(self) -> None:
        """Loading has made progress: the next ping before `drain` is answered."""
        self._progressed = True

    def drain(self) -> list[Run | Stop | Ping]:
        """Everything for the loop that is in the socket now or was there before."""
        self._looping = True
        self._pump()
        with self._arrived:
            messages = list(self._for_loop)
            self._for_loop.clear()
        return messages

    def wait(self) -> None:
        """Wait until there is something to drain."""
        with self._arrived:
            self._arrived.wait_for(lambda: bool(self._for_loop))

    def send(self, message: FromEngine) -> None:
        """Send one message; waits if the front does not keep up."""
        frame = encode(message)
        with self._sending:
            try:
                self._connection.sendall(frame)
            except OSError:
                os._exit(0)

    def _read(self) -> None:
        # Not `select`, which cannot take the numbers above 1023 that a busy front's sockets have.
        arrivals = select.poll()
        arrivals.register(self._connection, select.POLLIN)
        try:
            while True:
                arrivals.poll()
                self._pump()
        finally:
            os._exit(70)  # An engine without a front must not live on.

    def _pump(self) -> None:
        with self._pumping:
            while True:
                try:
                    data = self._connection.recv(_CHUNK, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                if not data:
                    os._exit(
                        0
                    )  # The front is gone. The main thread may be in native code, so nothing gentler helps.
                try:
                    messages = self._reader.feed(data)
                except BrokenFrame:
                    os._exit(70)
                for message in messages:
                    self._sort(message)

    def _sort(self, message: Message) -> None:
        match message:
            case Ping() if not self._looping:
                # The loop cannot answer while the model is loading. This thread can, but must not hide a hung load.
                if self._progressed:
                    self._progressed = False
                    self.send(Pong())
            case Begin():
                self._to_loop(self.prompts.begin(message))
            case Stop() | Ping():
                self._to_loop(message)
            case Submit(tokens=tuple(tokens)):
                self.prompts.accept(message, tokens)
            case Submit() | Tokenize():
                self.prompts.put(message)
            case Drop():
                self.prompts.drop(message.run)
            case Load():
                self._loads.put(message)

    def _to_loop(self, message: Run | Stop | Ping) -> None:
        with self._arrived:
            self._for_loop.append(message)
            self._arrived.notify()
