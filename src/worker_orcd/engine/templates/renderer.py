"""The engine's side of the renderer: sends conversations to its processes."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.fork_server import SLOW_AFTER_SEC, ForkServer, ForkServerLost, readable
from worker_orcd.engine.templates import limits, messages
from worker_orcd.engine.templates.source import Source, TemplateFault
from worker_orcd.engine.templates.special_tokens import Piece
from worker_orcd.printable import printable

_ATTEMPTS = 2
_UNDER_LIMITS = f"{limits.MAX_CPU_SEC} s of CPU time and {limits.MAX_MEMORY_BYTES >> 20} MiB"


class RendererLost(Exception):
    """The renderer's process cannot be started or ends at once; the cause is neither the template nor the prompt."""


class Renderer:
    """Renders conversations with one chat template, in separate processes.

    A conversation has at most 2 s of CPU time and 256 MiB of memory, and 30 s in all. Thread-safe; threads render in
    parallel, and must live as long as the engine (`ForkServer`). Error messages are printable, whatever the template
    writes into them.
    """

    def __init__(self, source: Source) -> None:
        """Compile the template and try it.

        Raises:
            TemplateFault: the template is broken, or exceeds its limits.
            RendererLost: the process cannot be started.
        """
        self._source = source
        self._server = ForkServer("worker_orcd.engine.templates.process", self._compile)
        try:
            self._server.start()
        except ForkServerLost as lost:
            raise RendererLost(f"the chat template's process: {lost}") from lost

    def render(self, variables: dict[str, Any], in_hand: CurrentPrompt | None = None) -> Sequence[Piece]:
        """Render a conversation.

        Args:
            variables: the template's variables, such as `messages`: JSON values.
            in_hand: notified of each long wait; dropping it ends the rendering.

        Raises:
            TemplateFault: the template refuses the conversation, fails on it, or exceeds its limits; or the
                conversation was dropped.
            RendererLost: the renderer's process cannot be started or ends at once.
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
            if not self._server.is_lost():
                raise TemplateFault(
                    f"the model's chat template takes too long or too much memory with this prompt ({_UNDER_LIMITS})"
                )
        raise RendererLost("the chat template's process ends each time it renders")

    def close(self) -> None:
        """End the process."""
        self._server.close()

    def _answer(
        self, variables: dict[str, Any], in_hand: CurrentPrompt
    ) -> messages.Rendered | messages.Failed | None:
        """The answer of a child of the renderer's process; None if the child ends without one."""
        with ExitStack() as block:
            try:
                connection = block.enter_context(self._server.conversation(in_hand))
            except (ForkServerLost, TemplateFault) as fault:
                # The template compiled before, so the cause is the machine.
                raise RendererLost(f"the chat template's process cannot be started: {fault}") from fault
            try:
                messages.send(connection, messages.Render(variables))
                if not readable(connection, SLOW_AFTER_SEC):
                    block.enter_context(in_hand.rendering_slowly())
                return messages.receive_answer(connection)
            except (OSError, EOFError, msgspec.MsgspecError):
                return None

    def _compile(self, connection: socket.socket) -> None:
        try:
            messages.send(connection, self._source)
            answer = messages.receive_answer(connection)
        except (OSError, EOFError, msgspec.MsgspecError):
            raise TemplateFault(
                f"the model's chat template cannot be compiled and tried within {_UNDER_LIMITS}"
            ) from None
        if isinstance(answer, messages.Failed):
            raise TemplateFault(printable(answer.reason))
