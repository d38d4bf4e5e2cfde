"""A router's own metrics, shown beside those of the workers."""

from typing import get_args

from prometheus_client import Counter

from worker_orcd.fleet.routing import Choice, Why
from worker_orcd.worker.metrics import Metrics


class RouterMetrics(Metrics):
    """Refusals, jobs that ended while no worker had them, and how jobs were routed."""

    def __init__(self) -> None:
        super().__init__()
        self.routes = Counter(
            "worker_fleet_routes",
            "Jobs handed to a worker, by why that one.",
            ["why"],
            registry=self.registry,
        )
        self.warm_blocks = Counter(
            "worker_fleet_prompt_blocks",
            "Blocks of prompts handed over: warm at that worker as far as the router knows, or not.",
            ["warm"],
            registry=self.registry,
        )
        self.requeued = Counter(
            "worker_fleet_requeued_jobs", "Jobs whose worker died and that went on.", registry=self.registry
        )
        self.lost_workers = Counter(
            "worker_fleet_lost_workers", "Workers found dead.", registry=self.registry
        )
        for why in get_args(Why):
            self.routes.labels(why)
        for warm in ("true", "false"):
            self.warm_blocks.labels(warm)

    def routed(self, choice: Choice) -> None:
        """A job was handed over."""
        self.routes.labels(choice.why).inc()
        self.warm_blocks.labels("true").inc(choice.warm_blocks)
        self.warm_blocks.labels("false").inc(choice.blocks - choice.warm_blocks)
