"""Clients that cost little: a plain socket for each request, one thread that reads all of them, and no parsing.

Both servers get the same bytes. An arrival is the moment in which a line with generated text was taken off the socket.
"""

import json
import re
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

_TEXT = re.compile(rb'"(?:text|content|t)": ?"[^"]')
"""In a chunk of either server: text that was generated, and not the empty one that announces a role."""


def _head(method: str, path: str, body: bytes, headers: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    ).encode() + body


def unchunked(raw: bytes) -> bytes:
    """An answer's body, out of chunks if it came in chunks."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = bytearray()
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            return bytes(body)
        body += rest[:length]
        rest = rest[length + 2 :]


def ask(port: int, method: str, path: str, body: Any = None, headers: str = "") -> tuple[int, bytes]:
    """One request and its whole answer: status and body."""
    data = b"" if body is None else json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(_head(method, path, data, headers))
        raw = bytearray()
        while taken := connection.recv(1 << 16):
            raw += taken
    return int(raw[9:12]), unchunked(bytes(raw))


class Stream:
    """A request whose answer is streamed, from the moment it is sent. Read by `read`."""

    def __init__(self, port: int, path: str, body: dict[str, Any], headers: str = "") -> None:
        data = _head("POST", path, json.dumps(body).encode(), headers)
        self.raw = bytearray()
        self.arrivals: list[float] = []
        self.ended = False
        self._counted = 0
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.sent_at = time.perf_counter()
        self.socket.sendall(data)

    def take(self) -> None:
        """Take what is there off the socket."""
        taken = self.socket.recv(1 << 16)
        now = time.perf_counter()
        if not taken:
            self.close()
            return
        self.raw += taken
        whole = self.raw.rfind(b"\n") + 1
        self.arrivals += [now] * len(_TEXT.findall(self.raw, self._counted, whole))
        self._counted = max(self._counted, whole)

    def close(self) -> None:
        """Leave, or be done."""
        self.ended = True
        self.socket.close()

    def first_token_ms(self, since: float | None = None) -> float:
        """Milliseconds from sending it, or from that moment, to its first text; reads until then."""
        read([self], lambda: bool(self.arrivals))
        return (self.arrivals[0] - (self.sent_at if since is None else since)) * 1000

    def finished(self) -> Self:
        """Read it to its end."""
        read([self], lambda: False)
        return self

    @property
    def text(self) -> str:
        """What was generated so far, of one of OpenAI's streams."""
        said: list[str] = []
        for text in unchunked(bytes(self.raw)).split(b"\n"):
            if text.startswith(b"data: {"):
                said += [
                    choice.get("text") or choice.get("delta", {}).get("content") or ""
                    for choice in json.loads(text[6:]).get("choices", ())
                ]
        return "".join(said)


def read(streams: Sequence[Stream], enough: Callable[[], bool], within_sec: float = 240) -> bool:
    """Read all of them until that is true or all have ended; false when the time is over before.

    Raises:
        RuntimeError: a stream was refused, or ended before that was true without any text.
    """
    deadline = time.perf_counter() + within_sec
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            if not stream.ended:
                selector.register(stream.socket, selectors.EVENT_READ, stream)
        while not enough() and selector.get_map():
            left = deadline - time.perf_counter()
            if left <= 0:
                return False
            for key, _ in selector.select(left):
                stream = key.data
                known = stream.socket
                stream.take()
                if stream.ended:
                    selector.unregister(known)
                    if not stream.arrivals:
                        raise RuntimeError(f"no text came: {bytes(stream.raw[-600:])!r}")
    return True
