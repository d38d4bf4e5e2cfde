"""The pure core: what a job is, and what may happen to it.

No I/O, no clock, no asyncio and nothing of ours is imported here.
Time comes in as an argument (seconds of a monotonic clock), decisions go out as values (`effects`).
"""
