"""Which run goes first, and which one may be preempted for it (pure). The front's rule is in `jobs/priority.py`.

A run that computes a prefix for others inherits their urgency: it is preempted, and leaves rows to another prompt, only
for a run that may preempt each of those others, too. Otherwise an urgent run would wait for a less urgent one, and so
for all runs between the two.
"""

from collections.abc import Mapping, Sequence

from worker_orcd.engine.planner import Pending
from worker_orcd.engine.run import Run

Followers = Mapping[int, Sequence[Run]]
"""By live run: the runs that wait until it has computed the prefix that they share with it."""


def order(run: Run) -> tuple[float, int]:
    """Sorts runs; the least is the most urgent, and the last to be preempted."""
    return run.order, run.run


def inherited_order(run: Run, followers: Followers) -> tuple[float, int]:
    """The order of a live run, or that of its most urgent follower if that is less."""
    return min(order(one) for one in _with_followers(run, followers))


def may_preempt(run: Run, other: Run) -> bool:
    """Whether the other run may be preempted for this one: it is less urgent, even with its wait."""
    return run.priority < other.priority and order(run) < order(other)


def gives_way(live: Run, to: Run, followers: Followers) -> bool:
    """Whether a live run may be preempted for another one, which its followers give way to as well."""
    return all(may_preempt(to, one) for one in _with_followers(live, followers))


def urgent_prompts_first(wanted: Sequence[tuple[Run, Pending]], followers: Followers) -> list[Pending]:
    """The pending work of these runs, without the prompts that give way to another one of them, or to one of its
    followers, in this step."""
    prompts = [
        one for run, pending in wanted if not pending.decoding for one in _with_followers(run, followers)
    ]
    return [
        pending
        for run, pending in wanted
        if pending.decoding or not any(gives_way(run, other, followers) for other in prompts)
    ]


def _with_followers(run: Run, followers: Followers) -> tuple[Run, ...]:
    return (run, *followers.get(run.run, ()))
