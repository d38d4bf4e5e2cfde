"""`worker-orcd fleet`: the same HTTP API in front of several workers."""

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from worker_orcd.cli.failure import fail
from worker_orcd.settings import Settings

FLAGS: dict[str, Any] = {
    "workers": Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, max=1024, help="how many workers (2)", show_default=False
        ),
    ],
    "routers": Annotated[
        int | None,
        typer.Option(
            "--routers",
            metavar="N",
            min=1,
            max=1024,
            help="how many routers serve HTTP (1)",
            show_default=False,
        ),
    ],
    "ray_address": Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            help="of the Ray cluster to join: HOST:PORT of its head, or auto; absent: Ray is started on this machine",
            show_default=False,
        ),
    ],
}
"""Options of this command beside those of a worker."""
_UNSUPPORTED = ("traces", "mcp")


def run_fleet(
    settings: Settings, workers: int = 2, routers: int = 1, ray_address: str | None = None
) -> NoReturn:
    """Run a fleet until a signal. Does not return."""
    for name in _UNSUPPORTED:
        if getattr(settings, name):
            fail("INVALID_REQUEST", f"--{name} is not supported in a fleet")
    from worker_orcd.cli.serve import StartupFailed, open_up  # noqa: PLC0415  # The list of commands does without it.
    from worker_orcd.fleet.launch import run  # noqa: PLC0415
    from worker_orcd.fleet.options import FleetOptions, FleetRefused  # noqa: PLC0415

    try:
        open_up(settings).listener.close()
        if ray_address is None and "threads" not in settings.model_fields_set:
            share = max(1, settings.threads // workers)  # More threads than cores would fight over them.
            settings = settings.model_copy(update={"threads": share})
        code = run(FleetOptions(settings, workers, routers), ray_address)
    except StartupFailed as error:
        fail(error.code, str(error))
    except FleetRefused as error:
        fail("INVALID_REQUEST", str(error))
    except ImportError as error:
        wanted = "a fleet requires the extra `ray` (pip install 'worker-orcd[ray]')"
        fail("INVALID_REQUEST", f"{wanted}, but there is {error}")
    sys.stderr.flush()
    os._exit(code)
