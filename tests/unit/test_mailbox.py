"""The engine's end of the socket while the model is loading, and during a long step."""

import socket
from collections.abc import Iterator

import pytest

from worker_orcd.engine.mailbox import Mailbox
from worker_orcd.protocol.framing import encode, front_side
from worker_orcd.protocol.messages import FromEngine, Load, Ping, Pong

LOAD = Load("m.gguf", "w", None, 1, 1, False, 1, "json")


class Front:
    """The other end, and the mailbox that a loading engine has."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(30)
        self.mailbox = Mailbox(theirs)
        self._reader = front_side()

    def asked(self) -> None:
        """Send a ping, and wait until the mailbox has taken it; messages after it stay in the socket."""
        self.ours.sendall(encode(Ping()) + encode(LOAD))
        self.mailbox.first()

    def said(self) -> list[FromEngine]:
        """Messages that the engine has sent by now."""
        self.mailbox.send(Pong())
        messages: list[FromEngine] = []
        while len(messages) < 1:
            messages += self._reader.feed(self.ours.recv(4096))
        return messages[:-1]


@pytest.fixture
def front() -> Iterator[Front]:
    """A new one. Its end stays open to the end of the process, which it would end: hence `detach`."""
    front = Front()
    yield front
    front.ours.detach()


def test_pings_while_loading_are_answered_only_after_progress(front: Front) -> None:
    """A thread that answered every ping would hide a load that hangs (G16)."""
    front.asked()
    assert front.said() == [Pong()], "the start of the process is progress"
    for _ in range(3):
        front.asked()
        assert front.said() == []
    front.mailbox.progressed()
    front.mailbox.progressed()
    front.asked()
    front.asked()
    assert front.said() == [Pong()]


def test_a_ping_during_a_step_is_answered_if_there_was_progress(front: Front) -> None:
    """The loop answers it as well once the step is over; a step that hangs makes no progress."""
    front.asked()
    assert front.said() == [Pong()]
    assert front.mailbox.drain() == []
    front.asked()
    assert front.said() == []
    front.mailbox.progressed()
    front.asked()
    assert front.said() == [Pong()]
    assert front.mailbox.drain() == [Ping(), Ping()]
