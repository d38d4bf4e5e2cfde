"""The seam: the engine as the front sees it. Whether it is a process of this machine is its own business."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from worker_orcd.protocol.messages import FromEngine, Prepare, Run
from worker_orcd.supervisor.liveness import Activity


@dataclass(frozen=True, slots=True)
class Death:
    """How an engine ended. `exit_code` or `signal` (its name), as far as known; `why` for people."""

    why: str
    pid: int | None = None
    exit_code: int | None = None
    signal: str | None = None


class Engine(Protocol):
    """One life of an engine, from its launch to its confirmed death. None of these wait."""

    @property
    def pid(self) -> int | None:
        """Its process, if it is one here."""

    def prepare(self, message: Prepare) -> None:
        """Have a prompt tokenized."""

    def drop_prompt(self, run: int) -> None:
        """Have the preparing of a prompt ended. It is answered all the same."""

    def run(self, message: Run) -> None:
        """Have a job generated, from its tokens so far on."""

    def stop(self, run: int) -> None:
        """Have a run stopped now, whatever is being computed. Its confirmation is a `Stopped`, or the death."""

    def ping(self, runs: tuple[int, ...]) -> None:
        """Have it say that it is there. `runs` are all that it should hold."""

    def activity(self) -> Activity | None:
        """What its process has done until now; None if that cannot be seen from here."""

    def kill(self, why: str) -> None:
        """End it for certain; `why` for people. The listener's `lost` is called once the death is confirmed."""

    async def close(self) -> None:
        """End it, gently first, and wait until it is dead."""


class EngineListener(Protocol):
    """Receives an engine's messages, and then, exactly once, its death."""

    def on_message(self, message: FromEngine) -> None:
        """It said something."""

    def lost(self, death: Death) -> None:
        """It is dead, and with it all that it held."""


Launch = Callable[[EngineListener], Awaitable[Engine]]
"""Start a fresh engine that loads its model."""
