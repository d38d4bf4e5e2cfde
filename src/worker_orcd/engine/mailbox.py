"""The engine's side of the socket. It reads messages at any time, also while prompts are prepared."""

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
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
    """Distributes messages: runs and stops to the loop, prompts to the tokenizer threads.

    The reader thread and the loop both read from the socket (`_pump`, under a lock): the loop must see every message
    that arrived before it cleared the interrupt byte, whether or not the reader thread has run since. When the front
    ends, the process exits at once, whatever it is computing.
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
        self._on_work: Callable[[], None] | None = None
        self._loads: SimpleQueue[Load] = SimpleQueue()
        self.prompts = Prompts()
        threading.Thread(target=self._read, name="mailbox", daemon=True).start()

    def first(self) -> Load:
        """Wait for the first message."""
        return self._loads.get()

    def progressed(self) -> None:
        """Note that loading or a long computation has made progress: the next ping is answered at once."""
        self._progressed = True

    def on_work(self, tell: Callable[[], None] | None) -> None:
        """Have `tell` called whenever a message about a job arrives, until this is called again with None."""
        self._on_work = tell

    def drain(self) -> list[Run | Stop | Ping]:
        """All messages for the loop that have arrived so far."""
        self._looping = True
        self._pump()
        with self._arrived:
            messages = list(self._for_loop)
            self._for_loop.clear()
        return messages

    def wait(self) -> None:
        """Wait until there are messages to drain."""
        with self._arrived:
            self._arrived.wait_for(lambda: bool(self._for_loop))

    def send(self, message: FromEngine) -> None:
        """Send one message. Blocks while the front does not keep up."""
        frame = encode(message)
        with self._sending:
            try:
                self._connection.sendall(frame)
            except OSError:
                os._exit(0)

    def _read(self) -> None:
        # Not `select`, which fails for file descriptors above 1023.
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
                    )  # The front has ended. The main thread may be in native code, so only `_exit` works.
                try:
                    messages = self._reader.feed(data)
                except BrokenFrame:
                    os._exit(70)
                for message in messages:
                    self._sort(message)

    def _sort(self, message: Message) -> None:
        if (tell := self._on_work) is not None and not isinstance(message, Ping):
            tell()
        match message:
            case Ping():
                # While the model is loading or a step is computed, the loop cannot answer pings. This thread answers
                # only if there was progress, because otherwise a hang would go unnoticed.
                if self._progressed:
                    self._progressed = False
                    self.send(Pong())
                if self._looping:
                    self._to_loop(message)
            case Begin():
                self._to_loop(self.prompts.begin(message))
            case Stop():
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
