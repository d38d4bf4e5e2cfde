"""Messages between the engine and the renderer's processes: one request and one answer."""

import socket
from typing import Any

import msgspec

from worker_orcd.engine.frames import receive, send
from worker_orcd.engine.templates.source import Source
from worker_orcd.engine.templates.special_tokens import Piece

__all__ = ["Failed", "Render", "Rendered", "receive_answer", "receive_render", "receive_source", "send"]


class Render(msgspec.Struct, frozen=True):
    """Render a conversation with these template variables: JSON values, such as `messages`."""

    variables: dict[str, Any]


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """The rendered conversation, in pieces to be tokenized one after the other. No pieces: the template compiles."""

    pieces: tuple[Piece, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The template is broken, refuses the conversation, or fails on it."""

    reason: str


def receive_source(connection: socket.socket) -> Source:
    """Receive the template to compile."""
    source: Source = receive(connection, Source)
    return source


def receive_render(connection: socket.socket) -> Render:
    """Receive the conversation to render."""
    render: Render = receive(connection, Render)
    return render


def receive_answer(connection: socket.socket) -> Rendered | Failed:
    """Receive the answer. Raises as `receive` does."""
    answer: Rendered | Failed = receive(connection, Rendered | Failed)
    return answer
