"""Processes without import time: they are forked from a process that has already imported the worker.

Starting Python and importing a web server takes two CPU seconds, and an engine takes one more: most of the time of a
short test. Forked processes start in a tenth of that, and still have their own ids, signals, exit codes and streams.
`python -m worker_orcd.testing.forked` is the process that forks.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

PRELOADED = (
    "anyio._backends._asyncio",
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "worker_orcd.cli.cancel",
    "worker_orcd.cli.execute",
    "worker_orcd.cli.main",
    "worker_orcd.cli.logs",
    "worker_orcd.cli.ps",
    "worker_orcd.cli.watch",
    "worker_orcd.cli.serve",
    "worker_orcd.engine.process",
    "worker_orcd.testing.scripted",
)
"""Modules that most workers and engines import. A forked process may import more."""
_ORDER_BYTES = 1 << 17
_STREAMS = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a process ignores from its start if its parent does."""


class ForkedProcess:
    """A forked process, with the interface of `subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        streams: tuple[int, int, int],
        env: Mapping[str, str],
        terminal: bool = False,
    ) -> None:
        """Run a module like `python -m`, in the current folder.

        Args:
            module: the module's name.
            arguments: the arguments after the module's name.
            streams: the descriptors of its stdin, stdout and stderr. The caller keeps them.
            env: the whole environment. Variables that begin with PYTHON have no effect, except PYTHONIOENCODING.
            terminal: whether the streams are a terminal, which becomes the process's controlling terminal.
        """
        self.args = [module, *arguments]
        self.returncode: int | None = None
        self._lock = threading.Lock()
        ours, its = os.pipe()
        order = {
            "module": module,
            "arguments": list(arguments),
            "env": dict(env),
            "folder": os.getcwd(),  # noqa: PTH109  # A word of the message.
            "terminal": terminal,
            "ignored": [sig for sig in _SIGNALS if signal.getsignal(sig) is signal.SIG_IGN],
        }
        self._status = os.fdopen(ours, "rb", buffering=0)
        try:
            _Parent.shared().send(json.dumps(order).encode(), [*streams, its])
        except BaseException:
            self._status.close()
            raise
        finally:
            os.close(its)
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        with self._lock:
            if self.returncode is None and _readable(self._status, 0):
                self._ended()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: the process still runs.
        """
        with self._lock:
            if self.returncode is None:
                if not _readable(self._status, timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                self._ended()
            assert self.returncode is not None
            return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self) -> None:
        word = self._status.readline()
        self._status.close()
        if not word:
            raise RuntimeError(f"the exit code of process {self.pid} is unknown")
        self.returncode = int(word)


class _Parent:
    """The process that forks, from its parent's side. It ends with its parent."""

    _lock = threading.Lock()
    _shared: "_Parent | None" = None

    def __init__(self) -> None:
        self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self._close)

    @classmethod
    def shared(cls) -> "_Parent":
        """The only instance of this process, started when it is first needed."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def send(self, order: bytes, descriptors: list[int]) -> None:
        with self._lock:
            socket.send_fds(self._control, [order], descriptors)

    def _close(self) -> None:
        self._control.close()
        self._process.wait()


def _readable(stream: "IO[bytes]", timeout: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return bool(selector.select(timeout))


# The process that forks.


def main() -> None:
    """Fork for each order and report the children's exit codes, until the parent ends. Each child returns from it,
    too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent.
    for module in PRELOADED:
        import_module(module)
    gc.collect()
    gc.freeze()  # Otherwise garbage collection would copy shared pages in each child.
    ordered = _fork_for(socket.socket(fileno=int(sys.argv[1])))
    if ordered is not None:
        order, streams = ordered
        _become(order, streams)
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def _fork_for(control: socket.socket) -> tuple[dict, list[int]] | None:  # type: ignore[type-arg]  # JSON.
    """Returns the order in each child, and None in the parent at the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    words, descriptors, _, _ = socket.recv_fds(control, _ORDER_BYTES, _STREAMS + 1)
                    if not words:
                        return None
                    pid = os.fork()
                    if pid == 0:
                        return json.loads(words), descriptors[:_STREAMS]
                    for descriptor in descriptors[:_STREAMS]:
                        os.close(descriptor)
                    os.write(descriptors[_STREAMS], f"{pid}\n".encode())
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, descriptors[_STREAMS]))
                else:
                    pid, status = key.data
                    _, ended = os.waitpid(pid, 0)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    # The receiver may have closed the pipe.
                    with contextlib.suppress(BrokenPipeError):
                        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
                    os.close(status)


def _become(order: dict, streams: list[int]) -> None:  # type: ignore[type-arg]  # JSON.
    """Give a forked child the state of a newly started process."""
    if order["terminal"]:
        os.login_tty(os.dup(streams[0]))
    else:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
    close_all_but(())
    _forget_signals()
    for sig in order["ignored"]:
        signal.signal(sig, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    os.chdir(order["folder"])
    _renew_streams()
    sys.path[0] = order["folder"]
    sys.argv = [order["module"], *order["arguments"]]


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(sig, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _renew_streams() -> None:
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    made = [open(number, mode, closefd=False) for number, mode in enumerate(("rb", "wb", "wb"))]  # noqa: SIM115
    on_terminal = os.isatty(1)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(made[0], encoding)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(made[1], encoding, line_buffering=on_terminal)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(  # type: ignore[misc]
        made[2], encoding, "backslashreplace", line_buffering=True
    )


def close_all_but(kept: Sequence[int]) -> None:
    """Close every descriptor except the three streams and these."""
    for open_one in list(Path("/proc/self/fd").iterdir()):
        number = int(open_one.name)
        if number >= _STREAMS and number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def run_and_exit(module: str, arguments: Sequence[str]) -> NoReturn:
    """Run a module in a process that was just forked from a running worker, then exit without returning to or cleaning
    up the worker's code."""
    code = 1
    try:
        gc.freeze()
        _forget_signals()
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # noqa: BLE001  # It ends here, whatever it is.
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
