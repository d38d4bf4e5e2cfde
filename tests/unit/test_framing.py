"""Messages to bytes and back, in whatever pieces they arrive."""

import struct
import typing
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.protocol import messages
from worker_orcd.protocol.framing import (
    MAX_FRAME_BYTES,
    BrokenFrame,
    FrameReader,
    encode,
    engine_side,
    front_side,
)
from worker_orcd.sampling import SamplingParams

SAMPLING = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, seed=2**64 - 1)

TO_ENGINE: list[messages.ToEngine] = [
    messages.Load("m.gguf", "worker", 0, 16, 16384, True, 2, "json"),
    messages.Load("m.gguf", "worker", None, 1, 1, False, 1, "pretty"),
    messages.Submit(1, "job-1", "cor", "漢👋\x00", "auto", ("a", "\n\n"), 32, SAMPLING, 3, "0"),
    messages.Submit(2**40, "j", "c", "", "none", ("x",), 32, SAMPLING, 5, "0" * 64, tokens=(1, 2)),
    messages.Tokenize(-1, "c", "é", "plain"),
    messages.Begin(1, 8, (3,)),
    messages.Begin(2**40, 1),
    messages.Drop(2**40),
    messages.Stop(7),
    messages.Ping(runs=(1, 2)),
]
FROM_ENGINE: list[messages.FromEngine] = [
    messages.Loading(25),
    messages.NarrationEvent(
        {"human": "Starting job a", "prompt_tokens": 3, "x": None, "y": 1.5, "z": True}, "owner"
    ),
    messages.Ready("m", "cpu", True, 0, "Q8_0", "gpt2", 49152, 16384, 2048, 16, True, 812.5),
    messages.Measured(((1, 6.5), (64, 330.0)), 512.5),
    messages.LoadFailed("INSUFFICIENT_VRAM", "8 GB required, 4 available"),
    messages.Accepted(1, tuple(range(500))),
    messages.Rejected(1, "too long", "prompt"),
    messages.Rejected(1, "our fault", None),
    messages.Tokenized(-1, (5,), (b"\xc3",)),
    messages.Started(2**40),
    messages.Step(
        12.5,
        (messages.TokenOut(1, 300, "é"), messages.TokenOut(2, None, "")),
        (messages.Progress(3, 64),),
        (
            messages.EndOfRun(1, "stop_sequence", 30, 0),
            messages.EndOfRun(2, None, 5, 0, "CUDA_ERROR", "GPU 0 failed"),
        ),
        99,
        3,
        25.0,
        "aborted",
        (4, 5),
    ),
    messages.Rendering(1, slow=True),
    messages.Pong(),
    messages.AuditFault(7, "sequence 0 held 3 KV cells instead of 0", repaired=False),
    messages.Step(0.1, (), (), (), 0, 0, 0.0),
    messages.Stopped(1, 4.5, 0.25, 100, 0, 64, 0, 0),
    messages.Stored(2**33, 100, 2**14),
]


def name(message: messages.Message) -> str:
    """A parameter's name."""
    return type(message).__name__


def fed(reader: FrameReader[typing.Any], data: bytes, places: list[int]) -> list[object]:
    """Feed bytes in pieces cut at these places."""
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [message for a, b in pairwise(borders) for message in reader.feed(data[a:b])]


def test_every_kind_of_message_is_tried_here() -> None:
    """A message that is added to the protocol has to be added to this file."""
    assert {type(message) for message in TO_ENGINE} == set(typing.get_args(messages.ToEngine))
    assert {type(message) for message in FROM_ENGINE} == set(typing.get_args(messages.FromEngine))


@pytest.mark.parametrize("message", TO_ENGINE, ids=name)
def test_every_message_to_the_engine_arrives_as_it_was_sent(message: messages.ToEngine) -> None:
    """Equal in all fields, with its own type."""
    assert engine_side().feed(encode(message)) == [message]


@pytest.mark.parametrize("message", FROM_ENGINE, ids=name)
def test_every_message_from_the_engine_arrives_as_it_was_sent(message: messages.FromEngine) -> None:
    """Equal in all fields, with its own type."""
    assert front_side().feed(encode(message)) == [message]


@pytest.mark.parametrize("message", [*TO_ENGINE, *FROM_ENGINE], ids=name)
def test_a_message_fed_byte_by_byte_arrives_with_its_last_byte(message: messages.Message) -> None:
    """Not sooner, and not later."""
    reader: FrameReader[typing.Any] = engine_side() if message in TO_ENGINE else front_side()
    data = encode(message)
    arrived = [reader.feed(data[n : n + 1]) for n in range(len(data))]
    assert arrived == [[]] * (len(data) - 1) + [[message]]


@given(
    sent=st.lists(st.sampled_from(FROM_ENGINE), max_size=8),
    places=st.lists(st.integers(0, 100_000), max_size=40),
)
@settings(deadline=None)
def test_any_messages_in_any_pieces_arrive_in_order(
    sent: list[messages.FromEngine], places: list[int]
) -> None:
    """None lost, none twice, whatever the socket does with the bytes."""
    assert fed(front_side(), b"".join(map(encode, sent)), places) == sent


@given(
    sent=st.lists(st.sampled_from(TO_ENGINE), max_size=8),
    places=st.lists(st.integers(0, 100_000), max_size=40),
)
@settings(deadline=None)
def test_the_other_direction_too(sent: list[messages.ToEngine], places: list[int]) -> None:
    """The engine reads as the front does."""
    assert fed(engine_side(), b"".join(map(encode, sent)), places) == sent


def test_a_frame_is_its_length_in_four_bytes_and_then_its_body() -> None:
    """Little-endian, so that engines in other languages can speak it."""
    data = encode(messages.Stop(7))
    assert data[:4] == struct.pack("<I", len(data) - 4)
    assert msgspec.msgpack.decode(data[4:]) == ["Stop", 7]


def test_a_frame_that_claims_to_be_too_long_is_broken_at_once() -> None:
    """Its body is not waited for: a broken peer can't fill our memory."""
    with pytest.raises(BrokenFrame, match=str(MAX_FRAME_BYTES + 1)):
        front_side().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))


def test_the_longest_frame_allowed_is_waited_for() -> None:
    """The limit itself is allowed."""
    assert front_side().feed(struct.pack("<I", MAX_FRAME_BYTES)) == []


def test_the_largest_prompt_there_can_be_fits_into_a_frame() -> None:
    """A body of 1 MiB, a token for each byte."""
    prepared = messages.Accepted(1, (50_000,) * 2**20)
    data = encode(prepared)
    assert len(data) < MAX_FRAME_BYTES
    assert front_side().feed(data) == [prepared]


def framed(body: bytes) -> bytes:
    """Any body as one frame."""
    return struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"garbage",
        msgspec.msgpack.encode(["Unheard", 1]),
        msgspec.msgpack.encode(["Stopped", 1]),
        msgspec.msgpack.encode(["Accepted", 1, ["x"]]),
        msgspec.msgpack.encode(["Loading", 33]),
        msgspec.msgpack.encode({"run": 1}),
        msgspec.msgpack.encode(["LoadFailed", b"\xff", "m"]),
        b"\x91\xa6\x00\x00\x00\x00\x00\x80",
        b"\x93\xa7Loading\x19" + b"\x91" * 100_000 + b"\x00",
        encode(messages.Accepted(1, (2,)))[4:] + b"\x00",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_message_is_a_broken_frame(body: bytes) -> None:
    """One kind of exception, whatever is wrong with it."""
    with pytest.raises(BrokenFrame):
        front_side().feed(framed(body))


def test_a_message_for_the_other_direction_is_a_broken_frame() -> None:
    """The unions are closed: an engine accepts no message that is meant for a front."""
    with pytest.raises(BrokenFrame):
        engine_side().feed(encode(messages.Stopped(1, 0, 0, 0, 0, 0, 0, 0)))
    with pytest.raises(BrokenFrame):
        front_side().feed(encode(messages.Stop(1)))


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_arbitrary_bytes_raise_no_other_exception(body: bytes) -> None:
    """A frame of arbitrary bytes is broken, or (hardly ever) a message."""
    try:
        arrived = front_side().feed(framed(body))
    except BrokenFrame:
        return
    assert len(arrived) == 1


def test_new_fields_with_defaults_may_be_missing() -> None:
    """A front understands the messages of an older engine."""
    old = msgspec.msgpack.encode(["Step", 1.0, [], [], [], 0, 0, 0.0])
    assert front_side().feed(framed(old)) == [messages.Step(1.0, (), (), (), 0, 0, 0.0)]
