"""The renderer's process: `python -m worker_orcd.engine.templates.process --socket FD --engine PID`.

It compiles one chat template, and for each conversation forks a child that renders it and ends. A child has limits of
its own, can be ended at any time, and sees no other conversation.
"""

import argparse
import gc
import os
import signal
import socket

from worker_orcd.engine.templates import limits, messages, system_calls
from worker_orcd.engine.templates.template import ChatTemplate, TemplateFault


def main() -> None:
    """Serve one engine until it goes away."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--socket", "--engine"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    limits.die_with(given.engine)
    engine = socket.socket(fileno=given.socket)
    source = messages.receive_source(engine)
    limits.confine()
    system_calls.refuse_all_but_serving()
    limits.start_clocks()
    try:
        template = ChatTemplate(source)
    except TemplateFault as fault:
        messages.send(engine, messages.Failed(str(fault)))
        return
    limits.stop_clocks()
    messages.send(engine, messages.Rendered())
    gc.freeze()  # The children's collections then leave these pages shared.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Children that have ended leave nothing behind.
    _serve(engine, template)


def _serve(engine: socket.socket, template: ChatTemplate) -> None:
    renderer = os.getpid()
    while True:
        data, descriptors, _, _ = socket.recv_fds(engine, 1, 1)
        if not data:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                engine.close()
                _render(connection, template, renderer)
                os._exit(0)


def _render(connection: socket.socket, template: ChatTemplate, renderer: int) -> None:
    limits.die_with(renderer)
    limits.start_clocks()
    answer: messages.Rendered | messages.Failed
    try:
        request = messages.receive_render(connection)
        limits.own(connection)
        with limits.ending_with(connection):
            system_calls.refuse_all_but_rendering()
            answer = messages.Rendered(tuple(template.render(request.variables)))
    except TemplateFault as fault:
        answer = messages.Failed(str(fault))
    except MemoryError:
        answer = messages.Failed("the model's chat template takes too much memory with this prompt")
    messages.send(connection, answer)


if __name__ == "__main__":
    main()
