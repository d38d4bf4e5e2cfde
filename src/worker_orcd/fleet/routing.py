"""Chooses the worker of a job: where its prefix is warm, unless that one is much busier than another (pure)."""

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from worker_orcd.jobs.request import JobRequest

BLOCK_CHARS = 256
"""A prompt's text is compared in blocks of so many characters."""
MAX_BLOCKS = 256
"""Blocks of a prompt that are compared: beyond these, prompts that begin alike go the same way."""
MAX_REMEMBERED = 20_000
"""Blocks remembered of one worker; the least recently used are forgotten."""
MUCH_BUSIER = 0.5
"""A warm worker is passed over when its load (jobs by slots) is above the least by more than this."""

Why = Literal["warm", "least_loaded", "warm_but_busy"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A worker, and why it: for metrics and log events.

    Attributes:
        worker: its name.
        why: its prefix is warm, or it has the least load, with or without a warmer one that is much busier.
        warm_blocks: blocks of the prompt that are warm there.
        blocks: blocks of the prompt.
    """

    worker: str
    why: Why
    warm_blocks: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Routed:
    """A choice, and who made it, for the worker's log.

    Attributes:
        router: the router's name.
        choice: of this worker.
        requeued: whether another worker had the job and died.
        term: how many routers served the job before this one.
        attempt: which of the router's attempts to hand the job to a worker.
        may_wait: whether the job may wait there for a slot.
    """

    router: str
    choice: Choice
    requeued: bool = False
    term: int = 0
    attempt: int = 0
    may_wait: bool = True


def chain_of(request: JobRequest, owner: str) -> list[bytes]:
    """A hash for each block of a prompt, each over all text up to its end; of no use to another key or salt."""
    if not request.cache_prompt:
        return []
    seen = hashlib.blake2b(f"{owner}\0{request.cache_salt or ''}\0{request.template}".encode(), digest_size=8)
    chain = []
    whole_blocks = len(request.prompt) // BLOCK_CHARS
    for block in range(min(whole_blocks, MAX_BLOCKS)):
        seen.update(request.prompt[block * BLOCK_CHARS : (block + 1) * BLOCK_CHARS].encode())
        chain.append(seen.digest())
    return chain


class WarmPrefixes:
    """The blocks that each worker has computed, as far as this router sent it their prompts or learnt of them."""

    def __init__(self, *, bound: int = MAX_REMEMBERED) -> None:
        self._bound = bound
        self._blocks: dict[str, OrderedDict[bytes, None]] = {}

    def warm(self, worker: str, chain: list[bytes]) -> int:
        """How many blocks of a chain are warm at a worker, from the first on.

        Looks at a few blocks only, since a router asks this of every worker for each job. A hole in the middle, left by
        blocks that were forgotten, may be overlooked.
        """
        known = self._blocks.get(worker)
        if not known or not chain or chain[0] not in known:
            return 0
        return bisect_left(chain, True, key=lambda block: block not in known)

    def sent(self, worker: str, chain: Iterable[bytes]) -> None:
        """A worker has got a prompt, or several."""
        known = self._blocks.setdefault(worker, OrderedDict())
        for block in chain:
            known[block] = None
            known.move_to_end(block)
        while len(known) > self._bound:
            known.popitem(last=False)

    def lost(self, worker: str) -> None:
        """A worker is gone."""
        self._blocks.pop(worker, None)


def choose(loads: Mapping[str, float], warm: WarmPrefixes, chain: list[bytes]) -> Choice:
    """The worker of a job.

    Args:
        loads: of each worker that may get it: jobs by slots.
        warm: what is warm where.
        chain: of the job's prompt (`chain_of`).
    """
    least = min(loads, key=lambda name: (loads[name], name))
    warm_blocks = {name: warm.warm(name, chain) for name in loads}
    warmest = max(sorted(loads), key=lambda name: (warm_blocks[name], -loads[name]))
    blocks = warm_blocks[warmest]
    if not blocks:
        return Choice(least, "least_loaded", 0, len(chain))
    if loads[warmest] > loads[least] + MUCH_BUSIER:
        return Choice(least, "warm_but_busy", warm_blocks[least], len(chain))
    return Choice(warmest, "warm", blocks, len(chain))
