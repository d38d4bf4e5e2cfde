"""The engine's side of the renderer: starts its process, restarts it when it dies, and sends it conversations."""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.templates import limits, messages
from worker_orcd.engine.templates.special_tokens import Piece
from worker_orcd.engine.templates.template import Source, TemplateFault
from worker_orcd.printable import printable

SLOW_AFTER_SEC = 0.1
"""A conversation that takes longer is slow: others are rendered beside it."""
_PATIENCE_SEC = limits.MAX_WALL_SEC + 5
"""Longer than the kernel's limit on a child, so only a stopped child is still there after it."""
_ATTEMPTS = 2

_UNDER_LIMITS = f"{limits.MAX_CPU_SEC} s of CPU time and {limits.MAX_MEMORY_BYTES >> 20} MiB"


class RendererLost(Exception):
    """The renderer's process cannot be started or keeps dying; neither the template nor the prompt is the cause."""


class Renderer:
    """Renders conversations with one chat template, in processes of their own.

    A conversation has at most 2 s of CPU time and 256 MiB of memory, and 30 s in all. Safe to call from several
    threads: they render beside each other. A thread that calls it must live as long as the engine, because the
    renderer ends with the thread that started it. Its faults are printable, whatever the template writes into them.
    """

    def __init__(self, source: Source) -> None:
        """Compile the template and try it.

        Raises:
            TemplateFault: the template is broken, or needs more than it may use.
            RendererLost: the process cannot be started.
        """
        self._source = source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def render(self, variables: dict[str, Any], in_hand: CurrentPrompt | None = None) -> Sequence[Piece]:
        """Render a conversation.

        Args:
            variables: the template's variables, such as `messages`: JSON values.
            in_hand: gets each long wait reported; dropping it ends the rendering.

        Raises:
            TemplateFault: the template refuses the conversation, fails on it, or uses more than it may; or the
                conversation was dropped.
            RendererLost: the renderer's process cannot be started or keeps dying.
        """
        in_hand = in_hand or CurrentPrompt()
        for _ in range(_ATTEMPTS):
            answer = self._answer(variables, in_hand)
            if in_hand.dropped:
                raise TemplateFault("the job has ended")
            if isinstance(answer, messages.Rendered):
                return answer.pieces
            if answer is not None:
                raise TemplateFault(printable(answer.reason))
            if not self._is_lost():
                raise TemplateFault(
                    f"the model's chat template takes too long or too much memory with this prompt ({_UNDER_LIMITS})"
                )
        raise RendererLost("the chat template's process ends whenever it renders")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def __del__(self) -> None:
        """End the process of a renderer that was not closed."""
        self._end()

    def _answer(
        self, variables: dict[str, Any], in_hand: CurrentPrompt
    ) -> messages.Rendered | messages.Failed | None:
        """The answer of a child of the renderer's process; None if the child ends without one."""
        with ExitStack() as block:
            connection = block.enter_context(self._connected(in_hand))
            block.enter_context(in_hand.connected(connection))
            connection.settimeout(_PATIENCE_SEC)
            try:
                messages.send(connection, messages.Render(variables))
                if not _readable(connection, SLOW_AFTER_SEC):
                    block.enter_context(in_hand.rendering_slowly())
                return messages.receive_answer(connection)
            except (OSError, EOFError, msgspec.MsgspecError):
                return None

    def _is_lost(self) -> bool:
        """Whether the process itself has ended. Its sockets close before its children end with it."""
        with self._lock:
            return self._process is None or _readable(self._control, 0)

    def _connected(self, in_hand: CurrentPrompt) -> socket.socket:
        """A connection to a new child of the renderer's process, which is restarted if it is gone."""
        for attempt in range(_ATTEMPTS):
            ours, theirs = socket.socketpair()
            with theirs, self._locked(in_hand), ExitStack() as block:
                try:
                    if attempt:
                        block.enter_context(in_hand.rendering_slowly())
                        self._start()
                    socket.send_fds(self._control, [b"r"], [theirs.fileno()])
                except OSError:
                    ours.close()
                    continue
                except TemplateFault as fault:
                    ours.close()
                    # The template compiled before, so the machine is the cause.
                    raise RendererLost(f"the chat template's process cannot be started: {fault}") from fault
            return ours
        raise RendererLost("the chat template's process ends as soon as it has started")

    @contextmanager
    def _locked(self, in_hand: CurrentPrompt) -> Iterator[None]:
        """Hold the lock. It may take long while another thread restarts the process."""
        if not self._lock.acquire(timeout=SLOW_AFTER_SEC):
            with in_hand.rendering_slowly():
                self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _start(self) -> None:
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ("--socket", str(theirs.fileno()), "--engine", str(os.getpid()))
            try:
                self._process = subprocess.Popen(  # noqa: S603  # Our own module.
                    [sys.executable, "-m", "worker_orcd.engine.templates.process", *arguments],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                ours.close()
                raise RendererLost(f"the chat template's process cannot be started: {error}") from error
        self._control = ours
        ours.settimeout(_PATIENCE_SEC)
        try:
            messages.send(ours, self._source)
            answer = messages.receive_answer(ours)
        except (OSError, EOFError, msgspec.MsgspecError):
            self._end()
            raise TemplateFault(
                f"the model's chat template cannot be compiled and tried within {_UNDER_LIMITS}"
            ) from None
        if isinstance(answer, messages.Failed):
            self._end()
            raise TemplateFault(printable(answer.reason))

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._control.close()


def _readable(connection: socket.socket, seconds: float) -> bool:
    arrivals = select.poll()
    arrivals.register(connection, select.POLLIN)
    return bool(arrivals.poll(seconds * 1000))
