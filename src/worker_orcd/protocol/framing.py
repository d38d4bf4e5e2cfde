"""Frames of messages: a 4-byte little-endian length, then MessagePack."""

import struct
from typing import Generic, TypeVar

import msgspec

from worker_orcd.protocol.messages import FromEngine, Message, ToEngine

_LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 8 * 1024 * 1024
"""Longer frames mean that the peer is broken. The largest valid message is a prompt of 1 MiB as token ids."""

_encoder = msgspec.msgpack.Encoder()
M = TypeVar("M")


class BrokenFrame(Exception):
    """The peer sent an invalid frame or message. The connection cannot be used any more."""


def encode(message: Message) -> bytes:
    """One message as one frame."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader(Generic[M]):
    """Assembles messages from bytes in any pieces."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[M]") -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """Return the messages that `data` completes.

        Raises:
            BrokenFrame: the bytes are not a frame with a known message.
        """
        self._buffer += data
        messages: list[M] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise BrokenFrame(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(memoryview(self._buffer)[start + _LENGTH.size : end]))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise BrokenFrame(str(error)) from error
            start = end
        del self._buffer[:start]
        return messages


def engine_side() -> FrameReader[ToEngine]:
    """The reader of an engine."""
    return FrameReader(msgspec.msgpack.Decoder(ToEngine))


def front_side() -> FrameReader[FromEngine]:
    """The reader of a front."""
    return FrameReader(msgspec.msgpack.Decoder(FromEngine))
