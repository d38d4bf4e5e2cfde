"""The pure core: jobs, and everything that can happen to them.

It uses no I/O, no clock, no asyncio and no other package of the worker. Time is an argument (seconds of a monotonic
clock); decisions are returned as values (`effects`).
"""
