"""The process that compiles grammars: `python -m worker_orcd.engine.grammars.process --socket FD --engine PID`.

The process holds the vocabulary. For each constrained run it forks a child that compiles the run's grammar and computes
the mask of each token. Clients write grammars, so a child has limits for every step, and ends with its run.
"""

import socket

from worker_orcd.engine.forking import engine_socket, serve
from worker_orcd.engine.frames import receive, send
from worker_orcd.engine.grammars.compiler import Compiler, GrammarFault, Matcher
from worker_orcd.engine.grammars.messages import Accept, Begin, Fault, Mask, Vocabulary
from worker_orcd.engine.templates import limits, system_calls

MAX_START_SEC = 60
"""For reading a vocabulary, which may have hundreds of thousands of tokens."""
MAX_COMPILE_SEC = 2.0
"""CPU time for compiling a grammar and advancing by the tokens generated so far."""
MAX_MASK_SEC = 0.1
"""CPU time for one mask. llguidance's own limits end most computations long before."""
_NICENESS = 10
"""Beside a thread that computes steps, a process with this niceness gets a tenth of a CPU."""


def main() -> None:
    """Serve one engine until it ends."""
    engine = engine_socket(__doc__)
    vocabulary = receive(engine, Vocabulary)
    limits.start_clocks(MAX_START_SEC, MAX_START_SEC)
    compiler = Compiler(vocabulary)
    limits.stop_clocks()
    limits.confine(_NICENESS)
    system_calls.refuse_all_but_serving()
    send(engine, Mask(b"", complete=False))
    serve(engine, lambda connection: _answer(connection, compiler))


def _answer(connection: socket.socket, compiler: Compiler) -> None:
    """Answer one run until its connection closes."""
    try:
        begin = receive(connection, Begin)
        system_calls.refuse_all_but_rendering()
        matcher: Matcher | None = None
        tokens: tuple[int, ...] = begin.generated
        while True:
            limits.start_clocks(MAX_MASK_SEC if matcher else MAX_COMPILE_SEC)
            matcher = matcher or compiler.compile(
                begin.constraint, ignore_eos=begin.ignore_eos, opened=begin.opened
            )
            matcher.accept(tokens)
            mask = matcher.mask()
            limits.stop_clocks()
            send(connection, mask)
            tokens = (receive(connection, Accept).token,)
    except GrammarFault as fault:
        send(connection, Fault(str(fault), fault.param))
    except MemoryError:
        send(connection, Fault("the grammar takes too much memory"))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main()
