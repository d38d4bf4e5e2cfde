"""Runs a fleet: starts or joins Ray, deploys routers and workers, and drains them in the end."""

import os
import signal
import threading
import time

from worker_orcd import narration
from worker_orcd.fleet.options import LOOPBACK, FleetOptions
from worker_orcd.supervisor.load_order import log_format

CLOSING_SEC = 2.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray runs its workers with niceness 15: on a busy machine, routers and engines would get next to nothing.
    "RAY_worker_niceness": "0",
    # On a busy machine the proxy takes longer to start than Serve waits by default; it was killed for that.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}
OWN_RAY = LOOPBACK | {
    # A busy machine may give Ray no CPU time for a minute, after which it would take its only node for dead.
    "RAY_health_check_failure_threshold": "1000",
}
"""Beside these, where Ray is started for the fleet."""


def run(options: FleetOptions, ray_address: str | None = None) -> int:
    """Run a fleet until a signal. Returns the exit code.

    Args:
        options: of the fleet.
        ray_address: of the Ray cluster to join; None: Ray is started on this machine, for this fleet.

    Raises:
        ImportError: the extra `ray` is not installed.
        FleetRefused: the cluster cannot be joined, or the workers cannot be started on it.
    """
    from worker_orcd.fleet.joining import ClusterAddress  # noqa: PLC0415  # It needs an extra.

    address = None if ray_address is None else ClusterAddress(ray_address)
    variables = OWN_RAY if address is None else address.environment()
    for name, value in (ENVIRONMENT | variables).items():
        os.environ.setdefault(name, value)
    from worker_orcd.fleet.deployment import Cluster  # noqa: PLC0415  # After the variables that Ray reads then.

    began, settings = time.monotonic(), options.settings
    narrator = narration.Narrator.configure(str(settings.worker_id), log_format=log_format(settings))
    cluster = Cluster(options, address)
    signals = _Signals()
    try:
        if cluster.deploy(signals.first):
            took_ms = round((time.monotonic() - began) * 1000, 1)
            narrator.emit(narration.Ready(host=settings.host, port=settings.port, startup_ms=took_ms))
        why = cluster.wait(signals.first)
        cluster.drain(settings.drain_sec + CLOSING_SEC, signals.second)
    finally:
        cluster.close(at_once=signals.second.is_set())
    uptime_s = round(time.monotonic() - began, 3)
    narrator.emit(narration.Shutdown(reason=signals.name or why, uptime_s=uptime_s, exit_code=0))
    narrator.flush()
    return 0


class _Signals:
    """Notes signals: the first one drains the fleet, the second one ends it at once."""

    def __init__(self) -> None:
        """Replace the handlers of this process; Ray has set some of its own."""
        self.first = threading.Event()
        self.second = threading.Event()
        self.name = ""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._noted)

    def _noted(self, number: int, _frame: object) -> None:
        if not self.first.is_set():
            self.name = signal.Signals(number).name
            self.first.set()
        elif number != signal.SIGHUP:  # When a terminal closes, both kernel and shell send one.
            self.second.set()
