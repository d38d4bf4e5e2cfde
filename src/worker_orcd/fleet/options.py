"""What a fleet is started with."""

import os
from dataclasses import dataclass, field, replace
from typing import Self

from worker_orcd.settings import Settings
from worker_orcd.supervisor.early import LLAMA_ENGINE

WORKERS_VARIABLE = "WORKER_ORCD_FLEET_WORKERS"
ROUTERS_VARIABLE = "WORKER_ORCD_FLEET_ROUTERS"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's own name for: use the loopback address. Otherwise Ray replaces it by another address of this machine. Read when
Ray is imported."""

_FILES = ("model", "api_key_file", "operator_key_file")


class FleetRefused(Exception):
    """The fleet cannot be started. The message is one line."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """The options of every worker and router, and how many of each there are.

    Attributes:
        settings: as for one worker.
        workers: how many workers.
        routers: how many routers.
        engine_module: the engine that workers run; the scripted one for tests.
    """

    settings: Settings = field(default_factory=Settings)
    workers: int = 2
    routers: int = 1
    engine_module: str = LLAMA_ENGINE

    def with_absolute_paths(self) -> Self:
        """The same files for processes with another working directory, as those of a cluster that runs already have."""
        given = {name: getattr(self.settings, name) for name in _FILES}
        paths = {name: path.absolute() for name, path in given.items() if path is not None}
        return replace(self, settings=self.settings.model_copy(update=paths))

    @classmethod
    def from_environment(cls) -> Self:
        """As the variables say, for `serve run`."""
        return cls(
            workers=int(os.environ.get(WORKERS_VARIABLE, "2")),
            routers=int(os.environ.get(ROUTERS_VARIABLE, "1")),
        )
