"""A worker on the scripted engine: `python -m worker_orcd.testing.serve --port 9000`, with the worker's own options.

Two environment variables shorten the time limits of slow clients, in seconds: `WORKER_ORCD_TEST_REQUEST_SEC` for
sending a request, `WORKER_ORCD_TEST_STALL_SEC` for reading a response. `WORKER_ORCD_TEST_CONNECTIONS` is the maximum
number of connections.
"""

import os
import sys

from worker_orcd.api import connection
from worker_orcd.cli.serve import StartupFailed, serve
from worker_orcd.settings import Settings
from worker_orcd.supervisor.local import StartModule, start_module

_ENGINE = "worker_orcd.testing.scripted_engine"


def main(start_engine: StartModule = start_module) -> int:
    """Serve with the command line options of `worker-orcd serve`. `start_engine` starts the engine."""
    given: dict[str, str] = {"model": "scripted.gguf"}
    name = ""
    for word in sys.argv[1:]:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            if name.startswith("no_"):
                given[name.removeprefix("no_")] = "false"
            else:
                given[name] = "true"
        else:
            given[name] = word
    connection.REQUEST_SEC = float(os.environ.get("WORKER_ORCD_TEST_REQUEST_SEC", connection.REQUEST_SEC))
    connection.STALL_SEC = float(os.environ.get("WORKER_ORCD_TEST_STALL_SEC", connection.STALL_SEC))
    connection.MAX_CONNECTIONS = int(
        os.environ.get("WORKER_ORCD_TEST_CONNECTIONS", connection.MAX_CONNECTIONS)
    )
    settings = Settings(**given)  # type: ignore[arg-type]  # Settings reads its values from text.
    try:
        code = serve(settings, engine_module=_ENGINE, start_engine=start_engine)
    except StartupFailed as error:
        print(f"worker-orcd: {error.code}: {error}", file=sys.stderr)
        return 1
    os._exit(code)  # Like `worker-orcd serve`.


if __name__ == "__main__":
    sys.exit(main())
