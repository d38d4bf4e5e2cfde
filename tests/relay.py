"""A TCP relay between client and worker that fails as networks do."""

import socket
import threading
from collections import deque
from contextlib import suppress
from itertools import chain
from typing import Literal

Fate = Literal["dropped", "mute"]
"""What becomes of a connection: closed once something is asked, or asked and never answered."""


class Relay:
    """It can be cut, it may hide from the worker that a client has left, as proxies do, and connections have fates.

    Attributes:
        url: where clients find it.
        asked: the first line of what each connection asked first.
        fates: of the next connections; those after them are ordinary ones.
    """

    def __init__(self, port: int, *, hides_leaving: bool = False) -> None:
        self._port = port
        self._hides_leaving = hides_leaving
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        self.fates: deque[Fate] = deque()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            fate = self.fates.popleft() if self.fates else None
            threading.Thread(target=self._serve, args=(near, fate), daemon=True).start()

    def _serve(self, near: socket.socket, fate: Fate | None) -> None:
        first = near.recv(65536)
        self.asked.append(first.split(b"\r\n")[0].decode())
        if fate == "dropped":
            near.close()
            return
        far = socket.create_connection(("127.0.0.1", self._port))
        self._pairs.append((near, far))
        far.sendall(first)
        if fate != "mute":
            threading.Thread(target=self._back, args=(far, near), daemon=True).start()
        with suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
        if not self._hides_leaving:
            _end(near, far)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                try:
                    near.sendall(data)
                except OSError:
                    if not self._hides_leaving:
                        break
        _end(near, far)

    def cut(self) -> None:
        """Cut all connections."""
        pairs, self._pairs = self._pairs, []
        for end in chain.from_iterable(pairs):
            _end(end)
            end.close()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()
        self.cut()


def _end(*connections: socket.socket) -> None:
    for one in connections:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class Answering:
    """A server that answers every request with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            near.recv(65536)
            self.asked += 1
            with suppress(OSError):
                near.sendall(self._answer)
            near.close()

    def close(self) -> None:
        """Stop the server."""
        self._listener.close()
