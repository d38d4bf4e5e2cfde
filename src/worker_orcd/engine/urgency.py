"""Which run goes first, and which one may be preempted for it (pure). The front's rule is in `jobs/priority.py`."""

from collections.abc import Sequence

from worker_orcd.engine.planner import Pending
from worker_orcd.engine.run import Run


def order(run: Run) -> tuple[float, int]:
    """Sorts runs; the least is the most urgent, and the last to be preempted."""
    return run.order, run.run


def may_preempt(run: Run, other: Run) -> bool:
    """Whether the other run may be preempted for this one: it is less urgent, even with its wait."""
    return run.priority < other.priority and order(run) < order(other)


def urgent_prompts_first(wanted: Sequence[tuple[Run, Pending]]) -> list[Pending]:
    """The pending work of these runs, without the prompts that give way to another one of them in this step."""
    prompts = [run for run, pending in wanted if not pending.decoding]
    return [
        pending
        for run, pending in wanted
        if pending.decoding or not any(may_preempt(other, run) for other in prompts)
    ]
