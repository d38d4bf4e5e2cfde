"""How urgent a job is, and why none starves.

Lower priorities run first. Waiting counts as urgency: a level is worth `LEVEL_SEC` of waiting. So the order of two
jobs never changes: the sum of acceptance time and levels sorts them. Levels beyond `MAX_LEVELS` count as that many. So
a job waits for no job that is accepted more than 240 s (2 * `MAX_LEVELS` * `LEVEL_SEC`) after it, whatever the
priorities, and a default one (0) for none that is accepted 120 s after it. The same holds for preemption.
"""

LEVEL_SEC = 10.0
"""Seconds of waiting that outweigh one level."""
MAX_LEVELS = 12


def handicap_sec(priority: int) -> float:
    """Seconds that a job stands behind one of priority 0 that is accepted at the same time; negative: before it."""
    return LEVEL_SEC * max(-MAX_LEVELS, min(MAX_LEVELS, priority))
