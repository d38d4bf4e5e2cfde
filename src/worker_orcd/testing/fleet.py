"""A fleet of workers on the scripted engine: `python -m worker_orcd.testing.fleet --workers 3 --port 9000`."""

import sys

from worker_orcd.fleet.launch import run
from worker_orcd.fleet.options import FleetOptions
from worker_orcd.settings import Settings

_ENGINE = "worker_orcd.testing.scripted_engine"


def main() -> int:
    """Run it with options from the command line: those of a worker, `--workers`, `--routers` and `--ray-address`."""
    words = sys.argv[1:]
    given = dict(
        zip((word.removeprefix("--").replace("-", "_") for word in words[::2]), words[1::2], strict=True)
    )
    workers, routers = int(given.pop("workers", "3")), int(given.pop("routers", "2"))
    address = given.pop("ray_address", None)
    settings = Settings(**{"model": "scripted.gguf", **given})  # type: ignore[arg-type]  # Settings reads text.
    return run(FleetOptions(settings, workers, routers, _ENGINE), address)


if __name__ == "__main__":
    sys.exit(main())
