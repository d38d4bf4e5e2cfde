"""A request's head that arrives in pieces: an upgrade to another protocol is never requested, and nothing else is
changed."""

from itertools import pairwise

from hypothesis import given, strategies as st

from worker_orcd.api.connection import BoundedProtocol

LINES = st.sampled_from(
    [
        b"Upgrade: h2c",
        b"UPGRADE:websocket",
        b"Upgrade-Insecure-Requests: 1",
        b"X-Upgrade: 1",
        b"Up: 1",
        b"Host: upgrade:",
        b"Connection: Upgrade",
    ]
)


def passed_on(pieces: list[bytes]) -> bytes:
    """What the parser gets of these pieces, all in one head."""
    connection = BoundedProtocol.__new__(BoundedProtocol)
    connection._line_begun = b""
    return b"".join(connection._without_upgrade(piece) for piece in pieces)


@given(st.lists(LINES, max_size=5), st.lists(st.integers(0, 200), max_size=12))
def test_an_upgrade_is_not_asked_for_however_the_head_comes(lines: list[bytes], cuts: list[int]) -> None:
    """Up to the empty line; the piece that has it may have some of the body behind it."""
    head = b"\r\n".join([b"POST /cancel HTTP/1.1", *lines, b"", b""])
    whole = head + b'{"job_id": "a",\nupgrade: 1}'
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(head))})
    pieces = [whole[begin:end] for begin, end in pairwise(places)]
    expected = whole
    for asked, instead in ((b"\nUpgrade:", b"\nx-upgrade:"), (b"\nUPGRADE:", b"\nx-upgrade:")):
        expected = expected.replace(asked, instead)
    assert passed_on(pieces) == expected
