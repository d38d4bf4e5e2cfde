"""The metrics that only a fleet has."""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter

from worker_orcd.fleet.routing import Routed, Why
from worker_orcd.worker.metrics import Metrics


class RouteMetrics:
    """How jobs were routed to one worker, by all routers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.routes = Counter(
            "worker_fleet_routes",
            "Jobs that routers handed to this worker, by the reason.",
            ["why"],
            registry=registry,
        )
        self.warm_blocks = Counter(
            "worker_fleet_prompt_blocks",
            "Blocks of the prompts of these jobs: warm here as far as the router knows, or not.",
            ["warm"],
            registry=registry,
        )
        self.requeued = Counter(
            "worker_fleet_requeued_jobs",
            "Jobs of dead workers that routers handed to this worker.",
            registry=registry,
        )
        for why in get_args(Why):
            self.routes.labels(why)
        for warm in ("true", "false"):
            self.warm_blocks.labels(warm)

    def routed(self, routed: Routed) -> None:
        """A job was handed over."""
        choice = routed.choice
        self.requeued.inc(routed.requeued)
        self.routes.labels(choice.why).inc()
        self.warm_blocks.labels("true").inc(choice.warm_blocks)
        self.warm_blocks.labels("false").inc(choice.blocks - choice.warm_blocks)


class RouterMetrics(Metrics):
    """A router's own: refusals, jobs that ended while no worker had them, and dead workers."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_workers = Counter(
            "worker_fleet_lost_workers", "Workers that this router found dead.", registry=self.registry
        )
