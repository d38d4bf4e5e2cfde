"""The process of `fork_server.py`: serves one engine, and answers each connection in a child process."""

import argparse
import gc
import os
import signal
import socket
from collections.abc import Callable

from worker_orcd.engine.templates import limits


def engine_socket(description: str) -> socket.socket:
    """The socket to the engine that started this process. The process ends with its engine.

    Args:
        description: of the process, for the help of its command line.
    """
    parser = argparse.ArgumentParser(description=description)
    for name in ("--socket", "--engine"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    limits.die_with(given.engine)
    return socket.socket(fileno=given.socket)


def serve(engine: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    """Fork a child for each connection that the engine sends, until the engine ends.

    Args:
        engine: the socket.
        answer: called in the child with its connection; then the child ends. It also ends when its lifeline closes.
    """
    gc.freeze()  # Otherwise a child's garbage collection would copy the shared pages.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel then reaps children that have ended.
    server = os.getpid()
    while True:
        data, descriptors, _, _ = socket.recv_fds(engine, 1, 2)
        if not data:
            return
        messages, lifeline = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        with messages, lifeline:
            if os.fork() == 0:
                engine.close()
                limits.die_with(server)
                limits.end_with(lifeline)
                answer(messages)
                os._exit(0)
