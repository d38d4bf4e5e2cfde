"""Renders events as lines: JSON for machines, columns for terminals."""

import json
import math
import os
from collections.abc import Callable
from typing import Literal, TextIO

from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter, LogLevelColumnFormatter
from structlog.typing import EventDict, WrappedLogger

from worker_orcd.narration.sink import LINE_LIMIT
from worker_orcd.narration.text import FIELD_LIMIT, shorten
from worker_orcd.printable import printable

LogFormat = Literal["json", "pretty", "auto"]

Render = Callable[[EventDict], str]

_IDENTITIES = frozenset({"target", "human", "worker_id", "job_id", "correlation_id", "group"})
"""Fields that are not shortened in long lines, because they are needed to find an event."""

_NOT_FOR_TERMINALS = ("actor", "target", "worker_id", "pid")
"""Fields not shown in columns: the same on every line, or contained in another column."""


class BoundedLine:
    """The last structlog processor: renders an event with bounded fields, so that the line can be written
    atomically."""

    def __init__(self, render: Render) -> None:
        self._render = render

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        """Render with the largest field limit that fits."""
        line = self._render(event)
        for limit in (512, 128, 32):
            if len(line) < LINE_LIMIT and len(line.encode("utf-8", "backslashreplace")) < LINE_LIMIT:
                break
            line = self._render(_bounded(event, limit))
        return line


def plain_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Convert all fields to JSON types, with the largest field limit."""
    return _bounded(event, FIELD_LIMIT)


def _bounded(event: EventDict, limit: int) -> EventDict:
    limits = dict.fromkeys(_IDENTITIES, FIELD_LIMIT) | {"traceback": 3 * limit}
    return {key: plain(value, limits.get(key, limit)) for key, value in event.items()}


def plain(value: object, limit: int = FIELD_LIMIT) -> str | int | float | bool | None:
    """Convert a field to a JSON type: text of at most `limit` characters, numbers with three decimals."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    # `str.__str__` returns the value of a string enum's member.
    return shorten(str.__str__(value) if isinstance(value, str) else repr(value), limit)


def renderer(log_format: LogFormat, stream: TextIO) -> Render:
    """Choose the format: `auto` is `pretty` on a terminal and `json` elsewhere."""
    terminal = _is_terminal(stream)
    if log_format == "json" or (log_format == "auto" and not terminal):
        return render_json
    return pretty(colors=terminal and not os.environ.get("NO_COLOR"))


def render_json(event: EventDict) -> str:
    """Render as one line of printable ASCII, which every encoding has and no terminal interprets."""
    # DEL is the only control character that JSON does not escape.
    return json.dumps(event, separators=(",", ":")).replace("\x7f", "\\u007f")


def pretty(*, colors: bool) -> Render:
    """Return a renderer for columns. A traceback follows on separate lines, each after a bar."""
    styles = ConsoleRenderer.get_default_column_styles(colors)
    level_colors = ConsoleRenderer.get_default_level_styles(colors)
    levels = {"INFO": level_colors["info"], "WARN": level_colors["warning"], "ERROR": level_colors["error"]}

    def column(style: str, width: int = 0, key_style: str | None = None) -> KeyValueColumnFormatter:
        return KeyValueColumnFormatter(key_style, style, styles.reset, _shown, width)

    columns = ConsoleRenderer(
        columns=[
            Column("", column(styles.kv_value, key_style=styles.kv_key)),
            Column("time", column(styles.timestamp)),
            Column("level", LogLevelColumnFormatter(levels, styles.reset)),
            Column("process", column(styles.timestamp, 6)),
            Column("action", column(styles.logger_name, 19)),
            # Without quotes, for readability.
            Column("human", KeyValueColumnFormatter(None, styles.bright, styles.reset, _sentence, 48)),
        ],
        sort_keys=False,
    )

    def render(event: EventDict) -> str:
        shown = {key: value for key, value in event.items() if key not in _NOT_FOR_TERMINALS}
        shown["time"] = shown["time"][11:]
        if trace := shown.pop("traceback", None):
            shown["exception"] = "\n".join(f"    | {printable(line)}" for line in trace.split("\n"))
        return columns(None, "", shown)

    return render


def _shown(value: object) -> str:
    """Show simple text without quotes, and other text quoted and escaped."""
    if isinstance(value, str) and value.isprintable() and not set(value) & set(" =\"'\\"):
        return value
    return repr(value)


def _sentence(value: object) -> str:
    """Show a sentence without quotes. It is made printable, because it may come from another worker."""
    return printable(str(value))


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError, AttributeError):
        return False
