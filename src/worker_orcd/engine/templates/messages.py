"""The messages between the engine and the renderer's processes: one each way."""

import socket
from typing import Any

import msgspec

from worker_orcd.engine.frames import receive, send
from worker_orcd.engine.templates.special_tokens import Piece
from worker_orcd.engine.templates.template import Source

__all__ = ["Failed", "Render", "Rendered", "receive_answer", "receive_render", "receive_source", "send"]


class Render(msgspec.Struct, frozen=True):
    """Render a conversation with these template variables: JSON values, such as `messages`."""

    variables: dict[str, Any]


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """The conversation, in pieces to be tokenized one after the other; none after compiling."""

    pieces: tuple[Piece, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The template is broken, or refuses the conversation or fails on it."""

    reason: str


def receive_source(connection: socket.socket) -> Source:
    """The template to compile."""
    source: Source = receive(connection, Source)
    return source


def receive_render(connection: socket.socket) -> Render:
    """The conversation to render."""
    render: Render = receive(connection, Render)
    return render


def receive_answer(connection: socket.socket) -> Rendered | Failed:
    """What came of it. Raises what `receive` raises."""
    answer: Rendered | Failed = receive(connection, Rendered | Failed)
    return answer
