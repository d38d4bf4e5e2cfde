"""The urgency of a job, which ensures that no job starves.

Lower priorities run first. Waiting increases urgency: one level is worth `LEVEL_SEC` of waiting. Jobs are sorted by the
sum of acceptance time and levels, so the order of two jobs never changes. Levels beyond `MAX_LEVELS` are cut off. So,
whatever the priorities, a job never waits for a job accepted more than 240 s (2 * `MAX_LEVELS` * `LEVEL_SEC`) later,
and a job with the default priority (0) never for one accepted 120 s later. The same holds for preemption.
"""

LEVEL_SEC = 10.0
"""Seconds of waiting that outweigh one level."""
MAX_LEVELS = 12


def handicap_sec(priority: int) -> float:
    """Seconds by which a job comes after a job with priority 0 accepted at the same time; negative: before it."""
    return LEVEL_SEC * max(-MAX_LEVELS, min(MAX_LEVELS, priority))
