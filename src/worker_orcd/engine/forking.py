"""The process's side of `fork_server.py`: it serves one engine, and answers each connection in a child of its own."""

import argparse
import gc
import os
import signal
import socket
from collections.abc import Callable

from worker_orcd.engine.templates import limits


def engine_socket(description: str) -> socket.socket:
    """The socket to the engine that started this process, which ends with it.

    Args:
        description: of the process, for its command line.
    """
    parser = argparse.ArgumentParser(description=description)
    for name in ("--socket", "--engine"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    limits.die_with(given.engine)
    return socket.socket(fileno=given.socket)


def serve(engine: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    """Fork a child for each connection that the engine sends, until the engine goes away.

    Args:
        engine: the socket.
        answer: what a child does with its connection. Then the child ends.
    """
    gc.freeze()  # The children's collections then leave these pages shared.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Children that have ended leave nothing behind.
    server = os.getpid()
    while True:
        data, descriptors, _, _ = socket.recv_fds(engine, 1, 1)
        if not data:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                engine.close()
                limits.die_with(server)
                answer(connection)
                os._exit(0)
