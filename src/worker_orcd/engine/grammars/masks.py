"""Masks of the tokens that a constrained run may generate next. Separate processes compute them beside the loop."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import SimpleQueue

import msgspec

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.fork_server import (
    SLOW_AFTER_SEC,
    ChildConnection,
    ForkServer,
    ForkServerLost,
    readable,
)
from worker_orcd.engine.frames import receive, send
from worker_orcd.engine.grammars.messages import Accept, Begin, Fault, Mask, Vocabulary
from worker_orcd.printable import printable
from worker_orcd.protocol.messages import Constraint

_ATTEMPTS = 2
_FIRST_PATIENCE_SEC = 2.0
"""How long a step waits for the first mask of a process, which it has to only if the process was lost meanwhile."""
_PATIENCE_SEC = 0.5
"""How long a step waits for each later mask. The process's CPU time is limited to less, but it may be starved."""
_STARVED_SEC = 10.0
"""After a process was starved, no step waits for a mask for this long: a run takes part only when its mask is ready."""
_QUICK_SEC = 0.005
"""If the last mask took longer than this, the run takes part in a step only when its mask is ready."""
_BUFFER_BYTES = 1 << 20
"""Socket buffer that holds a whole constraint or mask."""
_TOO_MUCH = "the grammar takes too much time or memory"


class ConstraintRefused(Exception):
    """A constraint cannot be used, or not at this token. The message is a sentence for clients.

    Attributes:
        param: the field at fault, if the constraint has several.
    """

    def __init__(self, reason: str, param: str | None = None) -> None:
        super().__init__(reason)
        self.param = param


class MaskLate(Exception):
    """A mask is not computed in time, because its process gets no CPU. The cause is neither the grammar nor a fault."""


class GrammarsLost(Exception):
    """The process that compiles grammars cannot be started; the cause is not a grammar."""


class Grammars:
    """Constraints over one model's vocabulary. The process starts with the first constraint."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """`vocabulary` is called on another thread, at each start of the process."""
        self._vocabulary = vocabulary
        self.server = ForkServer("worker_orcd.engine.grammars.process", self._greet)
        self.starved_until = 0.0
        """No step waits for a mask before this time, in seconds of the monotonic clock."""
        self._beginning: SimpleQueue[Matcher] = SimpleQueue()
        self._starter: threading.Thread | None = None

    def check(self, constraint: Constraint, in_hand: CurrentPrompt | None = None) -> None:
        """Try a constraint. Takes milliseconds, the first time a second. Must not be called by the engine's loop.

        Args:
            constraint: what to try.
            in_hand: notified of each wait that is longer than usual; dropping it ends the trial.

        Raises:
            ConstraintRefused: the constraint is malformed, not enforceable or over its limits, or was dropped.
            GrammarsLost: the process cannot be started.
        """
        in_hand = in_hand or CurrentPrompt()
        for _ in range(_ATTEMPTS):
            answer = self._tried(constraint, in_hand)
            if in_hand.dropped:
                raise ConstraintRefused("the job has ended")
            if isinstance(answer, Mask):
                return
            if answer is not None:
                raise ConstraintRefused(printable(answer.reason), answer.param)
            if not self.server.is_lost():
                raise ConstraintRefused(_TOO_MUCH)
        raise GrammarsLost("the process that compiles grammars ends each time it is used")

    def matcher(
        self,
        constraint: Constraint,
        generated: Sequence[int],
        *,
        ignore_eos: bool = False,
        opened: str = "",
    ) -> "Matcher":
        """Match a run's output, starting after these tokens. Returns at once, for the engine's loop."""
        matcher = Matcher(self, Begin(constraint, tuple(generated), ignore_eos, opened))
        self.begin(matcher)
        return matcher

    def begin(self, matcher: "Matcher") -> None:
        """Connect the matcher to a child of the process, on another thread."""
        if self._starter is None:
            self._starter = threading.Thread(target=self._begin_all, name="grammars", daemon=True)
            self._starter.start()
        self._beginning.put(matcher)

    def close(self) -> None:
        """End the process."""
        self.server.close()

    def _begin_all(self) -> None:
        """This thread lives as long as the engine, because the process ends with the thread that started it."""
        while True:
            self._beginning.get().connect(self.server)

    def _tried(self, constraint: Constraint, in_hand: CurrentPrompt) -> Mask | Fault | None:
        """A child's answer; None if the child ends without one."""
        with ExitStack() as block:
            try:
                connection = block.enter_context(self.server.conversation(in_hand))
            except ForkServerLost as lost:
                raise GrammarsLost(f"the process that compiles grammars: {lost}") from lost
            try:
                send(connection, Begin(constraint))
                if not readable(connection, SLOW_AFTER_SEC):
                    block.enter_context(in_hand.rendering_slowly())
                answer: Mask | Fault = receive(connection, Mask | Fault)
            except (OSError, EOFError, msgspec.MsgspecError):
                return None
            return answer

    def _greet(self, connection: socket.socket) -> None:
        try:
            send(connection, self._vocabulary())
            receive(connection, Mask)
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            raise ForkServerLost("it ends while it reads the vocabulary") from error


class Matcher:
    """Matches the output of one run, in a child process that computes each mask while the step runs.

    Only `mask` may wait, and only while the mask is not `ready`.
    """

    def __init__(self, grammars: Grammars, begin: Begin) -> None:
        self._grammars = grammars
        self._begin = begin
        self._tokens = list(begin.generated)
        self._mask: Mask | None = None
        self._slow = True
        """True until the first mask, which may take as long as compiling."""
        self._attempts = 1
        self._server_pid: int | None = None
        self._connection = _connection()

    @property
    def ready(self) -> bool:
        """Whether the run may take part in the next step: its mask has arrived, or the last one arrived quickly."""
        if self._mask is not None or readable(self._connection.messages, 0):
            return True
        return not self._slow and time.monotonic() >= self._grammars.starved_until

    def wait(self, seconds: float) -> None:
        """Wait until the mask is ready, at most this long."""
        if self._mask is None:
            readable(self._connection.messages, seconds)

    def mask(self) -> Mask:
        """Which tokens may come next.

        Raises:
            ConstraintRefused: the grammar is too complex at this place, or exceeds its limits.
            GrammarsLost: the process cannot be started.
            MaskLate: the child was starved. The matcher is of no use any more; another one may be.
        """
        started = time.monotonic()
        while self._mask is None:
            try:
                answer: Mask | Fault = receive(self._connection.messages, Mask | Fault)
            except TimeoutError:
                self._grammars.starved_until = time.monotonic() + _STARVED_SEC
                raise MaskLate from None
            except (OSError, EOFError, msgspec.MsgspecError):
                self._again()
                continue
            if isinstance(answer, Fault):
                raise ConstraintRefused(printable(answer.reason))
            self._mask = answer
            self._connection.messages.settimeout(_PATIENCE_SEC)
        self._slow = time.monotonic() - started > _QUICK_SEC
        return self._mask

    def accept(self, token: int) -> None:
        """Advance by a generated token: the child starts to compute the next mask."""
        self._tokens.append(token)
        self._mask = None
        with contextlib.suppress(OSError):  # `mask` then finds that the child has ended.
            send(self._connection.messages, Accept(token))

    def close(self) -> None:
        """End the child, whatever it is computing."""
        self._connection.close()

    def connect(self, server: ForkServer) -> None:
        """Start a child of the server. Called on another thread."""
        try:
            server.hand_over(self._connection, CurrentPrompt())
            self._server_pid = server.pid
            send(self._connection.messages, self._begin)
        except (OSError, ForkServerLost):
            return  # The connection closes; `mask` then finds that the child has ended.

    def _again(self) -> None:
        """Handle a child that ended without an answer: start again if the whole process is lost.

        Raises:
            ConstraintRefused: only the child has ended, at its limits.
            GrammarsLost: the process is lost a second time.
        """
        server = self._grammars.server
        if self._server_pid is not None and self._server_pid == server.pid and not server.is_lost():
            raise ConstraintRefused(_TOO_MUCH)
        if self._attempts == _ATTEMPTS:
            raise GrammarsLost("the process that compiles grammars is lost")
        self._attempts += 1
        self._connection.close()
        self._connection = _connection()
        self._begin = msgspec.structs.replace(self._begin, generated=tuple(self._tokens))
        self._grammars.begin(self)


def _connection() -> ChildConnection:
    connection = ChildConnection(_BUFFER_BYTES)
    connection.messages.settimeout(_FIRST_PATIENCE_SEC)
    return connection
