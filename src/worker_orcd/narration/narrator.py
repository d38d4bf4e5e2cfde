"""The narrator: emits one structured log event for each thing that happens (M0-W-1900).

For example:

    narrator = Narrator.configure(worker_id)
    narrator.emit(narration.Ready(host="127.0.0.1", port=8080, startup_ms=812.4))

Events are written to standard error, like a server's log. There are no events per token.
"""

import os
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker_orcd.narration.broadcast import Broadcast
from worker_orcd.narration.catalogue import FIELDS, Action
from worker_orcd.narration.context import (
    correlation_id as current_correlation_id,
    owner as current_owner,
)
from worker_orcd.narration.render import BoundedLine, LogFormat, plain_fields, renderer
from worker_orcd.narration.sink import Sink
from worker_orcd.narration.text import fill

ACTOR = "worker-orcd"

Process = Literal["front", "engine"]

captures: list[list[dict[str, Any]]] = []
"""Lists that receive the events instead of the streams; see `testing.capture`."""


class Narrator:
    """Emits events of the catalogue."""

    __slots__ = ("_log", "_sink", "broadcast")

    def __init__(self, log: structlog.BoundLogger, sink: Sink, broadcast: Broadcast) -> None:
        self._log = log
        self._sink = sink
        self.broadcast = broadcast

    @classmethod
    def configure(
        cls,
        worker_id: str,
        *,
        process: Process = "front",
        log_format: LogFormat = "auto",
        stream: TextIO | None = None,
        broadcast: Broadcast | None = None,
    ) -> "Narrator":
        """Return the narrator of this process. By default, `stream` is standard error and `broadcast` is new.

        `auto` is coloured columns on a terminal and JSON lines elsewhere.
        """
        out = sys.stderr if stream is None else stream
        sink = Sink(out)
        broadcast = broadcast or Broadcast()
        context = {"actor": ACTOR, "worker_id": worker_id, "pid": os.getpid(), "process": process}
        processors: list[Processor] = [
            _in_reading_order,
            _to_captures,
            plain_fields,
            _to(broadcast),
            BoundedLine(renderer(log_format, out)),
        ]
        return cls(structlog.BoundLogger(sink, processors, context), sink, broadcast)

    def emit(self, action: Action, *, correlation_id: str | None = None, owner: str | None = None) -> None:
        """Emit an event. A failure to write it is counted in `lines_lost`, never raised.

        The defaults of correlation id and owner are those of the request being served. The owner is not written;
        `broadcast` uses it to decide who may see the event.

        Raises TypeError for an action that is not in the catalogue, which is a programming error.
        """
        if type(action) not in FIELDS:
            raise TypeError(f"{type(action).__name__} is not an action of the narration catalogue")
        try:
            event = self._event(action, correlation_id)
            self._log.line(**event, **{_OWNER: current_owner.get() if owner is None else owner})
        except Exception:  # noqa: BLE001 - a log event never breaks what it reports
            self._sink.lost += 1

    def flush(self, sec: float = 0.2) -> None:
        """Wait up to `sec` seconds until a slow reader has taken pending lines, before the process exits."""
        self._sink.flush(sec)

    @property
    def lines_lost(self) -> int:
        """Number of events that could not be written since `configure`. Once it is above 0, each line contains it."""
        return self._sink.lost

    def _event(self, action: Action, correlation_id: str | None) -> dict[str, object]:
        values = {name: getattr(action, name) for name in FIELDS[type(action)]}
        sentence = action.sentences[action.variant()]
        event: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": sentence.level,
            "action": action.name,
            "target": action.target(),
            "human": fill(sentence.template, values),
        }
        correlation_id = current_correlation_id.get() if correlation_id is None else correlation_id
        if correlation_id is not None:
            event["correlation_id"] = correlation_id
        for name, omitted_when_none in FIELDS[type(action)].items():
            if values[name] is not None or not omitted_when_none:
                event[name] = values[name]
        if self._sink.lost:
            event["lines_lost"] = self._sink.lost
        return event


ENVELOPE = {
    "time": "time of the event, RFC 3339, UTC, to the millisecond",
    "level": "`INFO`, `WARN` or `ERROR`",
    "actor": f"always `{ACTOR}`",
    "action": "the name of the action",
    "target": "the object of the action: `worker`, `model`, `engine`, `request`, `job:…` or `group:…`",
    "human": "one sentence of at most 100 characters; values that are shortened here are whole in their fields",
    "worker_id": "which worker",
    "pid": "process id of the process that emits the event",
    "process": "`front` or `engine`",
    "job_id": "the job, if any",
    "correlation_id": "the request's correlation id, if any",
    "lines_lost": "number of events that could not be written since the process started, if any",
}
"""The common fields of all events, in order. The action's own fields follow."""


_OWNER = "_owner"


def _to(broadcast: Broadcast) -> Processor:
    """A processor that passes each event to the listeners."""

    def to_broadcast(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        owner = event.pop(_OWNER, None)
        # As in the log, but without tracebacks, which are only for readers of the log.
        broadcast.emit({name: value for name, value in event.items() if name != "traceback"}, owner or None)
        return event

    return to_broadcast


def _in_reading_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: event.pop(key) for key in ENVELOPE if key in event} | dict(event)


def _to_captures(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if not captures:
        return event
    for captured in captures:
        captured.append(dict(event))
    raise structlog.DropEvent
