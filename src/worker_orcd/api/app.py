"""The app: all resources and all middleware."""

from collections.abc import Callable

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from worker_orcd import __version__, narration
from worker_orcd.api import (
    cancel,
    console as console_page,
    error_responses,
    execute,
    health,
    jobs,
    llama_server,
    log_stream,
    shutdown,
    tokenize,
)
from worker_orcd.api.access import Access, AccessMiddleware
from worker_orcd.api.anthropic import messages
from worker_orcd.api.cors import CorsMiddleware
from worker_orcd.api.middleware import (
    BodyLimitMiddleware,
    CorrelationMiddleware,
    ErrorMiddleware,
    ReserveMiddleware,
    UnsupportedMiddleware,
)
from worker_orcd.api.openai import completions, embeddings, responses, stored_responses
from worker_orcd.api.refusals import RefusalMiddleware
from worker_orcd.worker.interface import WorkerInterface

_DESCRIPTION = """The LLM inference worker whose jobs can always be stopped.

`POST /execute` streams a job, `POST /cancel` stops it: always 202. Computing stops within 100 ms;
memory is free before the terminal event."""


def create_app(
    worker: WorkerInterface,
    narrator: narration.Narrator,
    shut_down: Callable[[str], None],
    *,
    access: Access | None = None,
    console: bool = False,
    private_load: bool = False,
) -> FastAPI:
    """Make the app.

    Args:
        worker: runs the jobs.
        narrator: logs refusals and failures.
        shut_down: begins the drain; its argument names the cause.
        access: who may use the worker; by default, clients on this machine.
        console: whether to serve the console at `/`.
        private_load: whether `/health` shows load figures to operators only.
    """
    app = FastAPIOffline(
        title="worker-orcd",
        version=__version__,
        description=_DESCRIPTION,
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
        # The worker has its own metrics and traces, and FastAPI's logs could contain prompts.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    refuse = app.state.refuse = error_responses.install(app, worker, narrator)
    for routes in (
        execute.router(worker),
        cancel.router(worker),
        jobs.router(worker),
        completions.router(worker),
        embeddings.router(worker),
        responses.router(worker),
        stored_responses.router(worker),
        messages.router(worker),
        llama_server.router(worker),
        tokenize.router(worker),
        health.router(worker, private_load=private_load),
        log_stream.router(narrator.broadcast),
        shutdown.router(shut_down),
    ):
        app.include_router(routes)
    if console:
        app.include_router(console_page.router())
    access = access or Access()
    # The middleware added last is the outermost.
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(UnsupportedMiddleware)
    app.add_middleware(ReserveMiddleware)
    app.add_middleware(AccessMiddleware, access=access)
    app.add_middleware(ErrorMiddleware, refuse=refuse, narrator=narrator)
    app.add_middleware(RefusalMiddleware, worker=worker)
    if access.cors_origins:
        app.add_middleware(CorsMiddleware, origins=access.cors_origins)
    app.add_middleware(CorrelationMiddleware)
    return app
