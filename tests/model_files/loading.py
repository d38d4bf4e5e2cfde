"""What a real engine makes of a model file: the engine's own code in a forked process, so a crash is an outcome.

`python -m tests.model_files.loading` reads paths from standard input and writes an outcome for each, as JSON.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import time
from typing import Any

from worker_orcd.engine import process
from worker_orcd.engine.llama import LlamaModel
from worker_orcd.protocol.framing import encode, front_side
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import (
    Accepted,
    Begin,
    Load,
    LoadFailed,
    Message,
    Ready,
    Rejected,
    Step,
    Submit,
    Template,
)
from worker_orcd.sampling import SamplingParams

MEMORY_BYTES = 4 << 30
"""Address space of an engine."""
LOADING_SEC = 60.0
"""A tiny model loads in a tenth of a second; the machine may be busy."""
PROMPTS: tuple[tuple[Template, str], ...] = (
    ("none", "hello old man"),
    ("auto", "the quick <|im_end|> fox \U0001f98a"),
)


def outcome_of(path: str) -> dict[str, Any]:
    """Load the file in an engine and, if that becomes ready, run two prompts.

    Its `end` is `refused` (with `message`), `ready`, `load crashed`, `prompt crashed`, `load hung` or `prompt hung`.
    """
    ours, theirs = socket.socketpair()
    byte = InterruptByte.create()
    with tempfile.TemporaryFile() as stderr:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_engine(theirs, byte, stderr.fileno())
        theirs.close()
        ours.sendall(encode(Load(path, "worker", None, 4, 2048, False, 1, "json")))
        try:
            said = _converse(ours)
        finally:
            ours.close()
            said_of_death = _reap(pid)
            byte.close()
        stderr.seek(0)
        printed = stderr.read().decode("utf-8", "replace")[-2000:]
    return said | said_of_death | {"printed": printed, "seconds": round(time.monotonic() - started, 2)}


def _reap(pid: int) -> dict[str, int]:
    """How the process ended, and the most memory it had in MiB; it is killed if it does not end soon by itself."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "mib": usage.ru_maxrss // 1024}


def _converse(ours: socket.socket) -> dict[str, Any]:
    reader = front_side()
    deadline = time.monotonic() + LOADING_SEC
    to_ask = list(enumerate(PROMPTS, 1))
    ready = False
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([ours], [], [], left)[0]:
            return {"end": "prompt hung" if ready else "load hung"}
        try:
            data = ours.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            return {"end": "prompt crashed" if ready else "load crashed"}
        for message in reader.feed(data):
            match message:
                case LoadFailed(message=text):
                    return {"end": "refused", "message": text}
                case Ready():
                    ready = True
                case Accepted(run=run):
                    _send(ours, Begin(run, 8))
                    continue
                case Rejected():
                    pass
                case Step(ended=ended) if ended:
                    pass
                case _:
                    continue
            deadline = time.monotonic() + LOADING_SEC
            if not to_ask:
                return {"end": "ready"}
            number, (template, text) = to_ask.pop(0)
            sampling = SamplingParams(repetition_penalty=1.1, seed=number, ignore_eos=True)
            _send(ours, Submit(number, f"j{number}", "c", text, template, (), 32, sampling, 1, "0"))


def _send(ours: socket.socket, message: Message) -> None:
    with contextlib.suppress(OSError):
        ours.sendall(encode(message))


def _be_engine(theirs: socket.socket, byte: InterruptByte, stderr: int) -> None:
    try:
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["GGML_NO_BACKTRACE"] = "1"
        own = ("--socket", theirs.detach(), "--interrupt", byte.fd, "--front", os.getppid())
        sys.argv = ["engine", *map(str, own)]
        process.main(LlamaModel)
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:  # noqa: BLE001  # The fork must not go on as its parent.
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(99)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(outcome_of(line.rstrip("\n"))), flush=True)
