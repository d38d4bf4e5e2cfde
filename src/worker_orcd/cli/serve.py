"""`worker-orcd serve`: check everything, bind the port, start the engine, serve until a shutdown."""

import asyncio
import contextlib
import contextvars
import os
import signal
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop

from worker_orcd import __version__, narration
from worker_orcd.api.access import Access
from worker_orcd.api.app import create_app
from worker_orcd.api.keys import ApiKeys, KeyFileError
from worker_orcd.api.server import bind, make_server
from worker_orcd.settings import Settings
from worker_orcd.supervisor import model_file
from worker_orcd.supervisor.early import LLAMA_ENGINE, EarlyEngine
from worker_orcd.supervisor.load_order import log_format
from worker_orcd.supervisor.local import StartModule, start_module
from worker_orcd.worker.assembly import CheckedModel, EngineStart, assemble
from worker_orcd.worker.single import SingleWorker

if TYPE_CHECKING:  # Requires an extra.
    from worker_orcd.worker.tracing import Tracing


CLOSING_SEC = 1.0
"""Time after the drain for all else: stops, the end of the engine, and pending data of streams."""


class StartupFailed(Exception):
    """The worker cannot start with these options. The message is one line; `code` is an error code of the API."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Opening:
    """The results of all checks that need no loaded model."""

    settings: Settings
    model: CheckedModel
    listener: socket.socket
    keys: ApiKeys | None
    tracing: "Tracing | None" = None


def open_up(settings: Settings, *, check_model: bool = True) -> Opening:
    """Validate everything that can be validated without loading, and bind the port.

    Raises:
        StartupFailed: with a one-line message.
    """
    try:
        model = CheckedModel.of(settings) if check_model else CheckedModel(str(settings.model))
    except (model_file.ModelFileError, FileNotFoundError) as error:
        raise StartupFailed("MODEL_LOAD_FAILED", str(error)) from error
    try:
        files = (settings.api_key_file, settings.operator_key_file)
        keys = ApiKeys(*files) if settings.has_keys else None
    except KeyFileError as error:
        raise StartupFailed("INVALID_REQUEST", str(error)) from error
    if settings.mcp:
        _check_mcp()
    tracing = _tracing(settings)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        wanted = f"--host {settings.host} --port {settings.port}: required a free address"
        why = error.strerror or str(error)
        raise StartupFailed("INVALID_REQUEST", f"{wanted}, but {why}") from error
    return Opening(settings, model, listener, keys, tracing)


def _check_mcp() -> None:
    """Import the modules that `--mcp` requires.

    Raises:
        StartupFailed: with a one-line message.
    """
    try:
        import worker_orcd.api.mcp_server  # noqa: F401, PLC0415  # It needs an extra.
    except ImportError as error:
        wanted = "--mcp requires the extra `mcp` (pip install 'worker-orcd[mcp]')"
        raise StartupFailed("INVALID_REQUEST", f"{wanted}, but there is {error}") from error


def _tracing(settings: Settings) -> "Tracing | None":
    """The tracing, if `--traces` is set.

    Raises:
        StartupFailed: with a one-line message.
    """
    if not settings.traces:
        return None
    try:
        from worker_orcd.worker.tracing import Tracing  # noqa: PLC0415  # It needs an extra.

        return Tracing.exporting(str(settings.worker_id))
    except ImportError as error:
        wanted = "--traces requires the extra `otel` (pip install 'worker-orcd[otel]')"
        raise StartupFailed("INVALID_REQUEST", f"{wanted}, but there is {error}") from error
    except ValueError as error:
        wanted = "--traces requires supported values of the OTEL_ variables"
        raise StartupFailed("INVALID_REQUEST", f"{wanted}, but {error}") from error


def serve(
    settings: Settings,
    *,
    engine_module: str = LLAMA_ENGINE,
    start_engine: StartModule = start_module,
    early: EarlyEngine | None = None,
) -> int:
    """Run a worker in this process until a signal or `POST /shutdown` ends it.

    Args:
        settings: validated options.
        engine_module: the engine to run; tests use the scripted one.
        start_engine: runs that module as a process.
        early: the first engine, if it is already started.

    Returns:
        The process's exit code.

    Raises:
        StartupFailed: with a one-line message. Everything is cleaned up.
    """
    try:
        opening = open_up(settings, check_model=engine_module == LLAMA_ENGINE)
    except StartupFailed:
        if early is not None:
            early.end()
        raise
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Serving(opening, EngineStart(engine_module, start_engine, early)).run())


class _Serving:
    """One run of the server, from the first log event to the last."""

    def __init__(self, opening: Opening, engines: EngineStart) -> None:
        settings = self._settings = opening.settings
        self._opening = opening
        self._started_at = time.monotonic()
        self._why: str | None = None
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None
        self._narrator = narration.Narrator.configure(
            str(settings.worker_id), log_format=log_format(settings)
        )
        try:
            self._worker, self._launcher = assemble(settings, opening.model, self._narrator, engines)
        except OSError as error:
            wanted = f"--prefix-cache-mib {settings.prefix_cache_mib}: required a memory file of this size"
            raise StartupFailed("INVALID_REQUEST", f"{wanted}, but {error.strerror}") from error
        if opening.tracing is not None:
            self._worker.subscribe(opening.tracing)
        service = SingleWorker(self._worker)
        app = create_app(
            service,
            self._narrator,
            self._shut_down,
            access=Access(opening.keys, settings.host, settings.insecure, settings.cors_origin),
            console=settings.console,
            private_load=settings.private_load,
        )
        if settings.mcp:
            from worker_orcd.api import mcp_server  # noqa: PLC0415  # It needs an extra.

            mcp_server.install(app, service)
        self._server = make_server(app, settings.keep_alive_sec)

    async def run(self) -> int:
        """Serve. Returns the exit code.

        Raises:
            StartupFailed: the engine could not load the model.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._log_failure)
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._on_signal, signal.Signals(sig).name)
        if self._opening.keys is not None:
            loop.add_signal_handler(signal.SIGHUP, self._reload_keys, self._opening.keys)
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` ignores it.
            loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
        if self._opening.tracing is not None:
            self._opening.tracing.report_to(partial(self._log_soon, loop))
        self._log_startup()
        self._worker.start()
        gone = asyncio.create_task(self._stop_when_gone())
        ready = asyncio.create_task(self._log_ready())
        await self._server.serve(sockets=[self._opening.listener])
        for task in (gone, ready):
            task.cancel()
        if self._draining is not None:
            await self._draining
        await self._worker.supervisor.close()
        await self._launcher.close()
        if self._opening.tracing is not None:
            self._opening.tracing.close()
        supervisor = self._worker.supervisor
        failure = None if supervisor.ever_ready else supervisor.failure
        code = 0 if failure is None else 1
        self._log_shutdown(code)
        if failure is not None:
            # Everything is cleaned up. The message comes last, so that it is noticed.
            raise StartupFailed(failure.code, failure.message)
        return code

    def _on_signal(self, name: str) -> None:
        """Drain on the first signal, stop at once on the second."""
        if self._signals:
            self._stop_at_once()
        self._signals += 1
        self._shut_down(name)

    def _on_sighup(self) -> None:
        """Drain when the terminal closes. A second SIGHUP has no effect, because both kernel and shell send one."""
        if not self._signals:
            self._on_signal("SIGHUP")

    def _shut_down(self, why: str) -> None:
        """Start the drain, once."""
        if self._draining is not None:
            return
        self._why = why
        # Without an owner, because a shutdown concerns all, even if an owner's request began it.
        everybodys = contextvars.copy_context()
        everybodys.run(narration.context.owner.set, None)
        self._draining = asyncio.create_task(self._drain(), name="drain", context=everybodys)

    async def _drain(self) -> None:
        until = time.monotonic() + self._settings.drain_sec + CLOSING_SEC
        await self._worker.drain()
        if self._opening.tracing is not None:
            self._opening.tracing.begin_to_close()
        self._narrator.broadcast.close()
        self._server.exit_within(until - time.monotonic())

    def _stop_at_once(self) -> NoReturn:
        self._worker.supervisor.kill("of a second signal")
        self._log_shutdown(0)
        os._exit(0)

    def _log_shutdown(self, code: int) -> None:
        uptime_s = round(time.monotonic() - self._started_at, 3)
        self._narrator.emit(
            narration.Shutdown(reason=self._why or "stopped", uptime_s=uptime_s, exit_code=code)
        )
        self._narrator.flush()

    async def _stop_when_gone(self) -> None:
        """End a worker whose model could not be loaded. If a later engine fails permanently, the worker stays
        unhealthy."""
        await self._worker.permanently_failed.wait()
        if not self._worker.supervisor.ever_ready:
            self._why = "the model cannot be loaded"
            self._server.should_exit = True

    async def _log_ready(self) -> None:
        await self._worker.ready.wait()
        host, port = self._opening.listener.getsockname()[:2]
        self._narrator.emit(
            narration.Ready(
                host=host, port=port, startup_ms=round((time.monotonic() - self._started_at) * 1000, 1)
            )
        )

    def _reload_keys(self, keys: ApiKeys) -> None:
        """Read the key files again. Invalid files are logged and change nothing."""
        try:
            keys.reload()
        except KeyFileError as error:
            self._narrator.emit(narration.Error(code="INVALID_REQUEST", message=str(error)))
        else:
            self._log_startup()

    def _log_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log exceptions outside of requests."""
        error = context.get("exception")
        message = str(context.get("message", "a callback failed"))
        if isinstance(error, Exception):
            self._narrator.emit(narration.Error.from_exception(error, code="INTERNAL", message=message))
        else:
            self._narrator.emit(narration.Error(code="INTERNAL", message=message))

    def _log_soon(self, loop: asyncio.AbstractEventLoop, trouble: str) -> None:
        """Log another thread's export error on the loop's thread, while the loop runs."""
        reported = narration.Error(code="INTERNAL", message=f"traces: {trouble}")
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._narrator.emit, reported)

    def _log_startup(self) -> None:
        settings, keys = self._settings, self._opening.keys
        self._narrator.emit(
            narration.Startup(
                version=__version__,
                host=settings.host,
                port=settings.port,
                model=self._opening.model.path,
                device="cpu" if settings.gpu_device is None else f"gpu {settings.gpu_device}",
                parallel=settings.parallel,
                context_length=settings.context_length,
                exact=settings.exact,
                max_queue=settings.max_queue,
                inference_timeout_sec=settings.inference_timeout_sec,
                api_keys=0 if keys is None else len(keys),
                open_key_files=", ".join(map(str, keys.open_files)) or None if keys else None,
                insecure=settings.insecure and keys is None,
            )
        )
