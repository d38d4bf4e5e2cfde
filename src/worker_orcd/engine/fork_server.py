"""The engine's side of a fork server: a process that forks a confined child for each connection.

Templates and grammars come from model files and clients, so they are computed in such a child, whose resources the
kernel limits (`templates/limits.py`), never in the engine's own process.
"""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.templates import limits

SLOW_AFTER_SEC = 0.1
"""A request that takes longer counts as slow: other requests are then prepared in parallel."""
_PATIENCE_SEC = limits.MAX_WALL_SEC + 5
"""Longer than the kernel's limit on a child, so only a stopped child can exceed it."""
_ATTEMPTS = 2


class ForkServerLost(Exception):
    """The process cannot be started, or ends at once each time."""


class ChildConnection:
    """A connection to one child: a socket for messages, and a lifeline, whose closing ends the child.

    Nothing is ever sent on the lifeline. The messages' socket cannot take its place, because the kernel signals a
    message as it signals the end, and may do so after the child has read the message and computes.

    Attributes:
        messages: the engine's end of the socket for messages.
    """

    def __init__(self, buffer_bytes: int | None = None) -> None:
        """Make both. `buffer_bytes`: the size of a message that is sent without waiting; None: the kernel's default."""
        self.messages, messages = socket.socketpair()
        self._lifeline, lifeline = socket.socketpair()
        self._theirs = (messages, lifeline)
        if buffer_bytes is not None:
            for end in (self.messages, messages):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)

    @contextmanager
    def handed_over(self) -> Iterator[list[int]]:
        """In this block, the descriptors of the child's ends, which close with it."""
        messages, lifeline = self._theirs
        with messages, lifeline:
            yield [messages.fileno(), lifeline.fileno()]

    def hang_up(self) -> None:
        """End the child, and whatever waits for its messages. For threads other than the connection's own."""
        for one in (self._lifeline, self.messages):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the child."""
        self._lifeline.close()
        self.messages.close()


class ForkServer:
    """Starts the process `python -m module`, restarts it when it is lost, and has its children serve connections.

    Thread-safe. The calling threads must live as long as the engine, because the process ends with the thread that
    started it.
    """

    def __init__(self, module: str, greet: Callable[[socket.socket], None]) -> None:
        """Prepare only; `start` or `hand_over` starts the process.

        Args:
            module: what to run; it takes `--socket FD --engine PID`.
            greet: called with the connection to each started process: sends what the process needs, and waits until it
                is ready. If `greet` raises, the process is ended.
        """
        self._module = module
        self._greet = greet
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process's id; None before the first start."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start or restart the process.

        Raises:
            ForkServerLost: it cannot be started.
            Exception: raised by `greet`.
        """
        with self._lock:
            self._start()

    def close(self) -> None:
        """End the process and its children."""
        with self._lock:
            self.__del__()

    def __del__(self) -> None:
        """End the process of a server that was not closed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None

    def is_lost(self) -> bool:
        """Whether the process has ended. Its sockets close before its children end. Never waits."""
        control = self._control
        try:
            return control is None or readable(control, 0)
        except (OSError, ValueError):
            return True  # Another thread has just closed it.

    def hand_over(self, connection: ChildConnection, in_hand: CurrentPrompt) -> None:
        """Have a new child serve this connection. Starts the process if it is not running.

        Args:
            connection: a new one. Its other ends are closed here.
            in_hand: notified of a wait that is longer than usual.

        Raises:
            ForkServerLost: the process cannot be started, or ends at once each time.
            Exception: what `greet` raises.
        """
        with connection.handed_over() as descriptors:
            self._send(descriptors, in_hand)

    def _send(self, descriptors: list[int], in_hand: CurrentPrompt) -> None:
        for attempt in range(_ATTEMPTS):
            with self._locked(in_hand), ExitStack() as block:
                try:
                    if attempt or self._control is None:
                        block.enter_context(in_hand.rendering_slowly())
                        self._start()
                    assert self._control is not None  # noqa: S101  # Started.
                    socket.send_fds(self._control, [b"r"], descriptors)
                except OSError:
                    continue
            return
        raise ForkServerLost("it ends right after its start")

    @contextmanager
    def conversation(self, in_hand: CurrentPrompt) -> Iterator[socket.socket]:
        """In this block, the socket for messages to a new child. It ends with the block, or when the prompt is dropped.

        Raises:
            ForkServerLost: as in `hand_over`.
            Exception: what `greet` raises.
        """
        with closing(ChildConnection()) as connection:
            self.hand_over(connection, in_hand)
            connection.messages.settimeout(_PATIENCE_SEC)
            with in_hand.connected(connection.hang_up):
                yield connection.messages

    @contextmanager
    def _locked(self, in_hand: CurrentPrompt) -> Iterator[None]:
        """Hold the lock. Getting it may take long while another thread restarts the process."""
        if not self._lock.acquire(timeout=SLOW_AFTER_SEC):
            with in_hand.rendering_slowly():
                self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _start(self) -> None:
        self.__del__()
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ("--socket", str(theirs.fileno()), "--engine", str(os.getpid()))
            try:
                self._process = subprocess.Popen(  # noqa: S603  # Our own module.
                    [sys.executable, "-m", self._module, *arguments],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                ours.close()
                raise ForkServerLost(f"it cannot be started: {error}") from error
        self._control = ours
        ours.settimeout(_PATIENCE_SEC)
        try:
            self._greet(ours)
        except BaseException:
            self.__del__()
            raise


def readable(connection: socket.socket, seconds: float) -> bool:
    """Whether data arrive, or the other side closes the connection, within that time."""
    arrivals = select.poll()
    arrivals.register(connection, select.POLLIN)
    return bool(arrivals.poll(seconds * 1000))
