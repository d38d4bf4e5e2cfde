"""Messages between the engine and its helper processes: length-prefixed msgpack over a socket."""

import socket
from typing import Any

import msgspec

_LENGTH_BYTES = 4


def send(connection: socket.socket, message: msgspec.Struct) -> None:
    """Send a message.

    Raises:
        OSError: the other side has closed the connection, or takes too long.
    """
    data = msgspec.msgpack.encode(message)
    connection.sendall(len(data).to_bytes(_LENGTH_BYTES, "little") + data)


def receive(connection: socket.socket, kind: Any) -> Any:
    """Wait for a message of this type, or of one of this union.

    Raises:
        EOFError: the other side closed the connection first.
        OSError: the other side takes too long.
        msgspec.MsgspecError: the other side sent something else.
    """
    length = int.from_bytes(_exactly(connection, _LENGTH_BYTES), "little")
    return msgspec.msgpack.decode(_exactly(connection, length), type=kind)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        more = connection.recv(min(count - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return data
