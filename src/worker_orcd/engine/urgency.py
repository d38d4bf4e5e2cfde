"""The order of runs, and which run may be preempted for another. Pure. The front's rule is in `jobs/priority.py`.

A run that computes a prefix for other runs inherits their urgency: it is preempted, or postponed for another prompt,
only for a run that may preempt these others, too. Otherwise an urgent run would wait for a less urgent one, and
therefore for all runs between the two.
"""

from collections.abc import Mapping, Sequence

from worker_orcd.engine.planner import Pending
from worker_orcd.engine.run import Run

Followers = Mapping[int, Sequence[Run]]
"""By live run: the runs that wait until it has computed their common prefix."""


def order(run: Run) -> tuple[float, int]:
    """Sort key of runs: the lowest is the most urgent, and the last to be preempted."""
    return run.request.order, run.number


def inherited_order(run: Run, followers: Followers) -> tuple[float, int]:
    """The order of a live run, or that of its most urgent follower if that is lower."""
    return min(order(one) for one in _with_followers(run, followers))


def may_preempt(run: Run, other: Run) -> bool:
    """Whether `other` may be preempted for `run`: it is less urgent, even counting the time it has waited."""
    return run.request.priority < other.request.priority and order(run) < order(other)


def gives_way(live: Run, to: Run, followers: Followers) -> bool:
    """Whether a live run and its followers may be preempted for another run."""
    return all(may_preempt(to, one) for one in _with_followers(live, followers))


def urgent_prompts_first(wanted: Sequence[tuple[Run, Pending]], followers: Followers) -> list[Pending]:
    """The pending work of these runs, without prompts that are postponed in this step for a more urgent one, or for one
    with a more urgent follower."""
    prompts = [
        one for run, pending in wanted if not pending.decoding for one in _with_followers(run, followers)
    ]
    return [
        pending
        for run, pending in wanted
        if pending.decoding or not any(gives_way(run, other, followers) for other in prompts)
    ]


def _with_followers(run: Run, followers: Followers) -> tuple[Run, ...]:
    return (run, *followers.get(run.number, ()))
