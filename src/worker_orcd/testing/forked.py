"""Processes that need not import anything: forked off one that has imported the worker already.

Starting Python and importing a web server takes two CPU seconds, and an engine one more: most of what a short test
takes. Forked ones start in a tenth of that and are processes all the same: with ids, signals, exit codes and streams of
their own. `python -m worker_orcd.testing.forked` is the process that is forked.
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
"""What most workers and engines import; a forked one may import more."""
_ORDER_BYTES = 1 << 17
_STREAMS = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that a process ignores from its start if its parent does."""


class ForkedProcess:
    """One of them, as `subprocess.Popen` shows a process."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        streams: tuple[int, int, int],
        env: Mapping[str, str],
        terminal: bool = False,
    ) -> None:
        """Run a module as `python -m` would, in this folder.

        Args:
            module: its name.
            arguments: those behind the module's name.
            streams: the descriptors of its stdin, stdout and stderr. The caller keeps them.
            env: all of its environment. What begins with PYTHON comes too late, but for PYTHONIOENCODING.
            terminal: whether its streams are a terminal, which it is to have for itself.
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
        """Its exit code, negative if it was a signal; None while it runs."""
        with self._lock:
            if self.returncode is None and _readable(self._status, 0):
                self._ended()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it has not come.
        """
        with self._lock:
            if self.returncode is None:
                if not _readable(self._status, timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                self._ended()
            assert self.returncode is not None
            return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it is still there."""
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
            raise RuntimeError(f"nobody knows how process {self.pid} ended")
        self.returncode = int(word)


class _Parent:
    """The process that is forked, as its own parent sees it. It ends with it."""

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
        """The only one of this process, started when it is wanted."""
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


# The process that is forked.


def main() -> None:
    """Fork for each order, and say how each child ended, until nobody orders any more. A child comes out of it, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C means our parent.
    for module in PRELOADED:
        import_module(module)
    gc.collect()
    gc.freeze()  # Pages that the collector writes to would be copied for each child.
    ordered = _fork_for(socket.socket(fileno=int(sys.argv[1])))
    if ordered is not None:
        order, streams = ordered
        _become(order, streams)
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def _fork_for(control: socket.socket) -> tuple[dict, list[int]] | None:  # type: ignore[type-arg]  # JSON.
    """Returns the order in each child, and None in the end."""
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
                    # Nobody may be interested.
                    with contextlib.suppress(BrokenPipeError):
                        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
                    os.close(status)


def _become(order: dict, streams: list[int]) -> None:  # type: ignore[type-arg]  # JSON.
    """Be as a fresh process would be."""
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
    """Close every descriptor but the three streams and these."""
    for open_one in list(Path("/proc/self/fd").iterdir()):
        number = int(open_one.name)
        if number >= _STREAMS and number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def run_and_exit(module: str, arguments: Sequence[str]) -> NoReturn:
    """Run a module in a process that was just forked off a running worker, and end with it: nothing of the worker's is
    ever returned to or cleaned up."""
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
