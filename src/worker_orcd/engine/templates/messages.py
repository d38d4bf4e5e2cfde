"""The messages between the engine and the renderer's processes: one each way, length-prefixed msgpack."""

import socket
from typing import Any

import msgspec

from worker_orcd.engine.templates.special_tokens import Piece
from worker_orcd.engine.templates.template import Source


class Render(msgspec.Struct, frozen=True):
    """Render a conversation with these template variables: JSON values, such as `messages`."""

    variables: dict[str, Any]


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """The conversation, in pieces to be tokenized one after the other; none after compiling."""

    pieces: tuple[Piece, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The template is broken, or refuses the conversation or fails on it."""

    reason: str


_LENGTH_BYTES = 4


def send(connection: socket.socket, message: Source | Render | Rendered | Failed) -> None:
    """Send a message.

    Raises:
        OSError: the other side has gone, or takes too long.
    """
    data = msgspec.msgpack.encode(message)
    connection.sendall(len(data).to_bytes(_LENGTH_BYTES, "little") + data)


def receive_source(connection: socket.socket) -> Source:
    """The template to compile."""
    return msgspec.msgpack.decode(_receive(connection), type=Source)


def receive_render(connection: socket.socket) -> Render:
    """The conversation to render."""
    return msgspec.msgpack.decode(_receive(connection), type=Render)


def receive_answer(connection: socket.socket) -> Rendered | Failed:
    """Receive the answer.

    Raises:
        EOFError: the other side ended without an answer.
        OSError: it takes too long.
        msgspec.MsgspecError: it sent something else.
    """
    return msgspec.msgpack.decode(_receive(connection), type=Rendered | Failed)


def _receive(connection: socket.socket) -> bytearray:
    length = int.from_bytes(_exactly(connection, _LENGTH_BYTES), "little")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        more = connection.recv(min(count - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return data
