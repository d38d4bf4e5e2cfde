"""The first engine of `serve`, started before the command line is parsed: both take long, on different cores."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from worker_orcd.supervisor.early import EarlyEngine

_SHOWN_ONLY = frozenset({"--help", "--version"})


class EngineAhead:
    """An engine process for the command `serve`, which takes it, or else it ends with this block."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start one if these arguments of the command line are likely to serve."""
        self._engine: EarlyEngine | None = None
        serves = not arguments or arguments[0] == "serve" or arguments[0].startswith("-")
        if serves and _SHOWN_ONLY.isdisjoint(arguments):
            from worker_orcd.supervisor import early  # noqa: PLC0415  # Other commands do without.

            with suppress(OSError):  # The server reports the reason.
                self._engine = early.EarlyEngine.start()

    def take(self) -> "EarlyEngine | None":
        """Return the engine, if there is one, for the caller to end."""
        engine, self._engine = self._engine, None
        return engine

    def __enter__(self) -> Self:
        """Nothing else."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what nobody took."""
        if (engine := self.take()) is not None:
            engine.end()
