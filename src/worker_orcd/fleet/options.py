"""What a fleet is started with."""

import os
from dataclasses import dataclass, field
from typing import Self

from worker_orcd.settings import Settings
from worker_orcd.supervisor.early import LLAMA_ENGINE

WORKERS_VARIABLE = "WORKER_ORCD_FLEET_WORKERS"
ROUTERS_VARIABLE = "WORKER_ORCD_FLEET_ROUTERS"


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

    @classmethod
    def from_environment(cls) -> Self:
        """As the variables say, for `serve run`."""
        return cls(
            workers=int(os.environ.get(WORKERS_VARIABLE, "2")),
            routers=int(os.environ.get(ROUTERS_VARIABLE, "1")),
        )
