"""The engine process from start to end: `python -m worker_orcd.engine --socket FD --interrupt FD --front PID`."""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import msgspec

from worker_orcd import narration
from worker_orcd.engine.exactness import require_exactness
from worker_orcd.engine.loop import EngineLoop
from worker_orcd.engine.mailbox import Mailbox
from worker_orcd.engine.model import Model, ModelLoadError
from worker_orcd.engine.prefix_store import PrefixStore
from worker_orcd.engine.slot import NoUsableSequence
from worker_orcd.engine.tokenizer_threads import prepare_all
from worker_orcd.printable import printable
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, LoadFailed, Loading, Measured, NarrationEvent, Percent, Ready

ModelLoader = Callable[[Load, InterruptByte, Callable[[float], None]], Model]
"""Makes a model, and calls back with the percentage loaded, whenever there is progress."""

_PR_SET_PDEATHSIG = 1
_LOOP_FAILED = 70


class _ToFront(narration.Broadcast):
    """Sends the engine's log events to the front, which has the listeners."""

    def __init__(self, send: Callable[[NarrationEvent], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, event: narration.EventFields, owner: str | None) -> None:
        """Send an event, which is already in the engine's own log."""
        self._send(NarrationEvent(event, owner))


def main(load_model: ModelLoader) -> None:
    """Serve one front with the model that `load_model` makes, until the front ends."""
    parser = argparse.ArgumentParser(prog="worker_orcd.engine", description=__doc__)
    for name in ("--socket", "--interrupt", "--front"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--store", type=int)
    given = parser.parse_args()
    _die_with_front(given.front)
    mailbox = Mailbox(socket.socket(fileno=given.socket))
    interrupt = InterruptByte(given.interrupt)
    load = mailbox.first()
    narrator = narration.Narrator.configure(
        load.worker_id, process="engine", log_format=load.log_format, broadcast=_ToFront(mailbox.send)
    )
    model, ready = _load(load, load_model, interrupt, mailbox)
    store = None
    if given.store is not None and os.fstat(given.store).st_size > 0:
        store = PrefixStore(given.store, _fingerprint(load, ready), own_thread=True)
    loop = EngineLoop(model, interrupt, mailbox.drain, mailbox.send, narrator, store=store)
    mailbox.progressed()
    loop.warm_up.first_rows(load.costs, mailbox.progressed)
    if not model.abortable:  # After `Ready` a stop would wait for it.
        loop.warm_up.measure(mailbox.progressed)
    mailbox.on_work(interrupt.set)
    mailbox.send(msgspec.structs.replace(ready, next_ms=loop.next_ms))
    threading.Thread(
        target=prepare_all,
        args=(mailbox.prompts, model, mailbox.send, narrator),
        name="preparer",
        daemon=True,
    ).start()
    try:
        costs = loop.warm_up.measure(mailbox.progressed) if model.abortable else loop.warm_up.costs
        mailbox.send(Measured(costs, loop.next_ms))
        mailbox.on_work(None)
        while True:
            if not loop.turn():
                mailbox.wait()
    except NoUsableSequence as error:
        narrator.emit(narration.Error(code="INTERNAL", message=str(error)))
        sys.exit(_LOOP_FAILED)
    except Exception as error:  # noqa: BLE001  # Logged, then over: a loop whose state may be wrong must not continue.
        message = "the engine's loop failed"
        narrator.emit(narration.Error.from_exception(error, code="INTERNAL", message=message))
        sys.exit(_LOOP_FAILED)


def _load(
    load: Load, load_model: ModelLoader, interrupt: InterruptByte, mailbox: Mailbox
) -> tuple[Model, Ready]:
    """Load and check the model. Ends the process with status 1 if that fails. Returns the model and its `Ready`."""
    started = time.monotonic()
    try:
        model = load_model(load, interrupt, _LoadingProgress(mailbox).reached)
        if load.exact and load.self_check:
            require_exactness(model, load.model_path, mailbox.progressed)
    except ModelLoadError as error:
        _fail(mailbox, error.code, str(error))
    except Exception as error:  # noqa: BLE001  # Whatever a file brings about: trying it again brings about the same.
        what = f"{type(error).__name__}: {error}"
        _fail(mailbox, "MODEL_LOAD_FAILED", f"model file {load.model_path}: cannot be loaded: {what}")
    load_ms = (time.monotonic() - started) * 1000
    return model, msgspec.structs.replace(_printable(model.facts), exact=load.exact, load_ms=load_ms)


def _fingerprint(load: Load, ready: Ready) -> bytes:
    """Identifies all that a stored prefix depends on: the model file's contents, the library, and the memory layout."""
    file: tuple[int, ...] = ()
    with contextlib.suppress(OSError):
        now = Path(load.model_path).stat()
        file = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
    kept = (load.model_path, ready.model, ready.device, ready.cells, ready.sequences, load.exact)
    return repr((file, kept, version("llama-cpp-python"))).encode()


def _printable(facts: Ready) -> Ready:
    """The same facts with printable names, because names come from the model file and the device's driver."""
    return msgspec.structs.replace(
        facts,
        model=printable(facts.model),
        device=printable(facts.device),
        quant_kind=printable(facts.quant_kind),
        tokenizer_kind=printable(facts.tokenizer_kind),
    )


def _fail(mailbox: Mailbox, code: str, message: str) -> NoReturn:
    """Report the failure and end the process. The message may contain strings from the model file."""
    mailbox.send(LoadFailed(code, printable(message)))
    sys.exit(1)


class _LoadingProgress:
    """Reports 0, 25, 50, 75 and 100 percent once each, and every progress to the mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._ahead: list[Percent] = [0, 25, 50, 75, 100]

    def reached(self, percent: float) -> None:
        """Note that this percentage of the model is loaded."""
        self._mailbox.progressed()
        while self._ahead and percent >= self._ahead[0]:
            self._mailbox.send(Loading(self._ahead.pop(0)))


def _die_with_front(front: int) -> None:
    """Have the kernel kill this process when the front dies, however suddenly. Ignore Ctrl-C, SIGTERM and SIGHUP, which
    terminals and service managers send to all processes of a group: the front handles them."""
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != front:
        os._exit(0)
