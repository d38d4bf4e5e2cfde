"""A fleet: the same HTTP API in front of several workers, on Ray Serve.

`serve run worker_orcd.fleet:app` needs the extra `ray`; everything but `deployment` and `actors` does without it.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`app`, the application for Ray Serve: made when it is asked for, since that needs Ray."""
    if name != "app":
        raise AttributeError(name)
    from worker_orcd.fleet.deployment import application  # noqa: PLC0415  # It needs an extra.

    return application()
