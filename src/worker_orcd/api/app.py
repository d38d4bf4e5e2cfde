"""The app: every resource, every middleware, one error shape."""

from collections.abc import Callable

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from worker_orcd import __version__, narration
from worker_orcd.api import answers, cancel, execute, health, jobs, shutdown
from worker_orcd.api.access import AccessMiddleware
from worker_orcd.api.keys import ApiKeys
from worker_orcd.api.middleware import BodyLimitMiddleware, CorrelationMiddleware, ErrorMiddleware
from worker_orcd.api.openai import completions, responses
from worker_orcd.worker.worker import Worker

_DESCRIPTION = """The LLM inference worker whose jobs can always be stopped.

`POST /execute` streams a job, `POST /cancel` stops it: always 202, within 100 ms, freed before told."""


def create_app(
    worker: Worker,
    narrator: narration.Narrator,
    shut_down: Callable[[str], None],
    *,
    keys: ApiKeys | None = None,
    host: str = "127.0.0.1",
    insecure: bool = False,
) -> FastAPI:
    """Make it.

    Args:
        worker: does the work.
        narrator: is told of refusals and failures.
        shut_down: begins the drain; given what asked for it.
        keys: who may ask; None: whoever reaches it, see `host` and `insecure`.
        host: where it listens.
        insecure: whether that may be reached from elsewhere without keys.
    """
    app = FastAPIOffline(
        title="worker-orcd",
        version=__version__,
        description=_DESCRIPTION,
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    refuse = app.state.refuse = answers.install(app, worker, narrator)
    for routes in (
        execute.router(worker),
        cancel.router(worker),
        jobs.router(worker),
        completions.router(worker),
        responses.router(worker),
        health.router(worker),
        shutdown.router(shut_down),
    ):
        app.include_router(routes)
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(AccessMiddleware, keys=keys, host=host, insecure=insecure)
    app.add_middleware(ErrorMiddleware, refuse=refuse, narrator=narrator)
    app.add_middleware(CorrelationMiddleware)
    return app
