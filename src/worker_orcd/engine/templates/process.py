"""The renderer's process: `python -m worker_orcd.engine.templates.process --socket FD --engine PID`.

The process compiles one chat template. For each conversation it forks a child, which renders the conversation and ends.
A child has its own limits, can be killed at any time, and has access to no other conversation.
"""

import socket

from worker_orcd.engine.forking import engine_socket, serve
from worker_orcd.engine.templates import limits, messages, system_calls
from worker_orcd.engine.templates.source import TemplateFault
from worker_orcd.engine.templates.template import ChatTemplate


def main() -> None:
    """Serve one engine until it ends."""
    engine = engine_socket(__doc__)
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
    serve(engine, lambda connection: _render(connection, template))


def _render(connection: socket.socket, template: ChatTemplate) -> None:
    limits.start_clocks()
    answer: messages.Rendered | messages.Failed
    try:
        request = messages.receive_render(connection)
        system_calls.refuse_all_but_rendering()
        answer = messages.Rendered(tuple(template.render(request.variables)))
    except TemplateFault as fault:
        answer = messages.Failed(str(fault))
    except MemoryError:
        answer = messages.Failed("the model's chat template takes too much memory with this prompt")
    messages.send(connection, answer)


if __name__ == "__main__":
    main()
