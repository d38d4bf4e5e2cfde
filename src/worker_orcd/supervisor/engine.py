"""The interface between front and engine. The engine need not be a local process."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from worker_orcd.protocol.messages import Begin, FromEngine, Submit, Tokenize
from worker_orcd.supervisor.liveness import Activity


@dataclass(frozen=True, slots=True)
class Death:
    """How an engine ended: `exit_code` or the name of the `signal`, if known, and `why` as text."""

    why: str
    pid: int | None = None
    exit_code: int | None = None
    signal: str | None = None


class Engine(Protocol):
    """One engine from its launch to its confirmed death. No method waits."""

    @property
    def pid(self) -> int | None:
        """The process id, if the engine is a local process."""

    def prepare(self, message: Submit | Tokenize) -> None:
        """Have a prompt rendered and tokenized."""

    def drop(self, run: int) -> None:
        """Drop a prompt before `begin`. If the engine is preparing the prompt, it still answers."""

    def begin(self, message: Begin) -> None:
        """Generate a run, starting after the tokens generated so far."""

    def stop(self, run: int) -> None:
        """Stop a run now, in any phase. The confirmation is a `Stopped` message, or the engine's death."""

    def ping(self, runs: tuple[int, ...]) -> None:
        """Ping the engine. `runs` are all runs that it should hold."""

    def activity(self) -> Activity | None:
        """The activity of the engine's process so far; None if it cannot be observed."""

    def kill(self, why: str) -> None:
        """Kill the engine; `why` is for log events. The listener's `lost` is called once the death is confirmed."""

    async def close(self) -> None:
        """End the engine: first by closing the socket, then by a kill. Wait until it is dead."""


class EngineListener(Protocol):
    """Receives an engine's messages, and then, exactly once, its death."""

    def on_message(self, message: FromEngine) -> None:
        """The engine sent a message."""

    def lost(self, death: Death) -> None:
        """The engine is dead; its cells are gone."""


Launch = Callable[[EngineListener], Awaitable[Engine]]
"""Start a fresh engine that loads its model."""
