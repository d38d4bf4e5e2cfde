"""The actions of the catalogue that only a fleet has."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from worker_orcd.narration.action import ALWAYS, OPERATORS, JobAction, Sentence, WorkerAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(JobAction):
    """A router of a fleet handed a job to this worker. A job whose worker died is handed over again."""

    name: ClassVar = "route"
    sentences: ClassVar = {
        "warm": Sentence(
            "INFO", "Job {job_id} is routed here: {warm_blocks} blocks of {blocks} of its prompt are warm"
        ),
        "least_loaded": Sentence("INFO", "Job {job_id} is routed here: this worker has the least load"),
        "warm_but_busy": Sentence("INFO", "Job {job_id} is routed here: the warm worker is much busier"),
        "requeued": Sentence(
            "WARN", "Job {job_id} is requeued here: its worker died after {tokens_out} tokens"
        ),
    }

    router: Annotated[str, "the router that serves the job's client"]
    why: Annotated[
        Literal["warm", "least_loaded", "warm_but_busy"],
        "the beginning of its prompt is warm here; no worker has less load; or one that is warm is much busier",
    ]
    warm_blocks: Annotated[int, "blocks of 256 characters of its prompt that should be warm here"]
    blocks: Annotated[int, "blocks of its prompt"]
    requeued: Annotated[bool, "whether another worker had the job and died"] = False
    tokens_out: Annotated[int, "tokens that the dead worker had generated"] = 0

    def variant(self) -> str:
        """Depends on the reason."""
        return "requeued" if self.requeued else self.why


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(WorkerAction):
    """A router of a fleet found a worker dead. Each router logs this for the jobs that it serves."""

    name: ClassVar = "worker_lost"
    acts_on: ClassVar = "worker"
    sentences: ClassVar = {
        ALWAYS: Sentence("ERROR", "Worker {lost_worker} is lost; {jobs} of its jobs are requeued"),
    }
    for_tenants: ClassVar = "Worker {lost_worker} is lost; its jobs are requeued"

    lost_worker: Annotated[str, "its worker id"]
    jobs: Annotated[int, "its jobs that this router serves, and hands to other workers", OPERATORS]
