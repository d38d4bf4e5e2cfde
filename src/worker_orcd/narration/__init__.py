"""Log events: a closed catalogue of actions, and the narrator that emits them.

For example:

    from worker_orcd import narration

    narrator = narration.Narrator.configure(worker_id)
    narrator.emit(narration.Ready(host="127.0.0.1", port=8080, startup_ms=812.4))
"""

from worker_orcd.narration import context, library  # noqa: F401  # Before all that imports structlog.
from worker_orcd.narration.action import EventFields
from worker_orcd.narration.broadcast import Broadcast, Listener, MarkedEvent
from worker_orcd.narration.catalogue import (
    ACTIONS,
    Action,
    Cancel,
    CancelComplete,
    Disconnect,
    Drain,
    EngineLost,
    EngineRestarted,
    Error,
    ExecuteEnd,
    ExecuteStart,
    ModelLoadComplete,
    ModelLoadProgress,
    ModelLoadStart,
    Ready,
    Shutdown,
    Startup,
    Timeout,
)
from worker_orcd.narration.fleet_actions import Route, WorkerLost
from worker_orcd.narration.narrator import Narrator
from worker_orcd.narration.render import LogFormat
from worker_orcd.narration.text import prompt_digest

__all__ = [
    "ACTIONS",
    "Action",
    "Broadcast",
    "Cancel",
    "CancelComplete",
    "Disconnect",
    "Drain",
    "EngineLost",
    "EngineRestarted",
    "Error",
    "EventFields",
    "ExecuteEnd",
    "ExecuteStart",
    "Listener",
    "LogFormat",
    "MarkedEvent",
    "ModelLoadComplete",
    "ModelLoadProgress",
    "ModelLoadStart",
    "Narrator",
    "Ready",
    "Route",
    "Shutdown",
    "Startup",
    "Timeout",
    "WorkerLost",
    "context",
    "prompt_digest",
]
