"""Which run goes first, and which one gives way to it (pure). The front's rule is in `jobs/priority.py`."""

from worker_orcd.protocol.messages import Run


def order(run: Run) -> tuple[float, int]:
    """Sorts runs; the least is the most urgent, and the last to be preempted."""
    return run.order, run.run


def may_preempt(run: Run, other: Run) -> bool:
    """Whether the other run gives way to this one: it is less urgent, and has not waited long enough to make up."""
    return run.priority < other.priority and order(run) < order(other)
