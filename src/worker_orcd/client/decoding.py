"""Decodes streams: a job's events, OpenAI's chunks (as events), and log events."""

import time
from collections.abc import Iterator

from worker_orcd.client import shapes
from worker_orcd.client.connection import Message
from worker_orcd.client.model import Event, Json, NarrationEvent


def events(message: Message) -> Iterator[Event]:
    """Events of `POST /execute` and `GET /jobs/{job_id}/events`."""
    incarnation, number = position(message.id)
    shape = shapes.EVENT_DATA.get(message.event, dict)
    yield Event(number, message.event, shapes.decoded(message.data, shape), incarnation)


def position(event_id: str) -> tuple[str, int]:
    """Split an event's id into the incarnation of its job and its number.

    Raises:
        ValueError: the text is not the id of an event.
    """
    incarnation, dot, number = event_id.rpartition(".")
    if not (incarnation and dot and number.isascii() and number.isdigit()):
        raise ValueError(f"{event_id!r} is not the id of an event")
    return incarnation, int(number)


def narrated(message: Message) -> Iterator[NarrationEvent]:
    """Log events of `GET /narration`."""
    yield NarrationEvent(message.id, shapes.decoded(message.data, shapes.LOG_EVENT))


class Chunks:
    """Events from the chunks of `POST /v1/chat/completions`, for one choice with `usage`. A piece of text counts as a
    token."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._next_number = 0
        self._pieces = 0
        self._usage: Json = {}
        self._stop_reason: str | None = None
        self._first_at = self._last_at = 0.0

    def __call__(self, message: Message) -> Iterator[Event]:
        """Read one."""
        if message.data == "[DONE]":
            yield self._event("end", self._ending())
            return
        chunk = shapes.decoded(message.data, shapes.CHUNK)
        if chunk.get("error"):
            yield self._event("error", chunk["error"])
            return
        self._usage = chunk.get("usage") or self._usage
        if reported := chunk.get("prompt_progress"):
            words = {"prompt_tokens": "total", "processed": "processed", "cached": "cache"}
            yield self._event("progress", {ours: reported[its] for ours, its in words.items()})
        for choice in chunk["choices"]:
            self._stop_reason = choice["finish_reason"] or self._stop_reason
            if "role" in choice["delta"]:
                yield self._event("started", {"job_id": self._job_id, "model": chunk["model"]})
            elif text := choice["delta"].get("content"):
                yield self._piece(text)

    def _piece(self, text: str) -> Event:
        self._last_at = time.monotonic()
        self._first_at = self._first_at or self._last_at
        self._pieces += 1
        return self._event("token", {"t": text, "i": self._pieces - 1})

    def _ending(self) -> Json:
        return {
            "tokens_out": self._usage["completion_tokens"],
            "decode_time_ms": round((self._last_at - self._first_at) * 1000),
            "stop_reason": self._stop_reason,
        }

    def _event(self, name: str, data: Json) -> Event:
        self._next_number += 1
        return Event(self._next_number - 1, name, data)
