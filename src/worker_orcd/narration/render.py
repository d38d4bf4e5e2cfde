"""From an event to its line: JSON for machines, columns for a person at a terminal."""

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
"""Kept whole when a line gets too long: an event that cannot be found by its job is worth little."""

_NOT_FOR_TERMINALS = ("actor", "target", "worker_id", "pid")
"""The same on every line, or said by another column."""


class BoundedLine:
    """The last structlog processor: renders the event, its fields bounded so that the line fits a pipe."""

    def __init__(self, render: Render) -> None:
        self._render = render

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        """Render with the most generous limit that fits."""
        line = self._render(event)
        for limit in (512, 128, 32):
            if len(line) < LINE_LIMIT and len(line.encode("utf-8", "backslashreplace")) < LINE_LIMIT:
                break
            line = self._render(_bounded(event, limit))
        return line


def plain_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Reduce all fields to what JSON knows, with the most generous limit."""
    return _bounded(event, FIELD_LIMIT)


def _bounded(event: EventDict, limit: int) -> EventDict:
    limits = dict.fromkeys(_IDENTITIES, FIELD_LIMIT) | {"traceback": 3 * limit}
    return {key: plain(value, limits.get(key, limit)) for key, value in event.items()}


def plain(value: object, limit: int = FIELD_LIMIT) -> str | int | float | bool | None:
    """Reduce a field to what JSON knows: text of at most `limit` characters, numbers to three places."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    # `str.__str__` turns members of text enums into what they mean.
    return shorten(str.__str__(value) if isinstance(value, str) else repr(value), limit)


def renderer(log_format: LogFormat, stream: TextIO) -> Render:
    """Choose the rendering: `auto` is `pretty` on a terminal and `json` elsewhere."""
    terminal = _is_terminal(stream)
    if log_format == "json" or (log_format == "auto" and not terminal):
        return render_json
    return pretty(colors=terminal and not os.environ.get("NO_COLOR"))


def render_json(event: EventDict) -> str:
    """Render as one line of ASCII, so no encoding can refuse it and no terminal obeys it."""
    # DEL is the one control character that JSON leaves as it is.
    return json.dumps(event, separators=(",", ":")).replace("\x7f", "\\u007f")


def pretty(*, colors: bool) -> Render:
    """Return a rendering in columns. A traceback follows on lines of its own, each behind a bar."""
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
            # Easier to read without quotes.
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
    """Show text bare when it cannot be misread, otherwise quoted with everything unprintable escaped."""
    if isinstance(value, str) and value.isprintable() and not set(value) & set(" =\"'\\"):
        return value
    return repr(value)


def _sentence(value: object) -> str:
    """Show a sentence without quotes. Another worker's may not be printable."""
    return printable(str(value))


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError, AttributeError):
        return False
