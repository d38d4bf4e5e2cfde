"""An operator's limits for jobs."""

from dataclasses import dataclass, field
from typing import Literal

from worker_orcd.jobs.request import Ceilings
from worker_orcd.tool_calls.formats import ToolFormat


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits. Seconds and counts, as in `Settings`."""

    ceilings: Ceilings = field(default_factory=Ceilings)
    max_queue: int = 512
    cancel_deadline_sec: float = 5.0
    cancel_memory_sec: float = 5.0
    drain_sec: float = 4.0
    tool_format: Literal["auto", ToolFormat] = "auto"
