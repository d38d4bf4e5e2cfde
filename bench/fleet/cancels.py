"""Cancels, one after the other: is the computing over within five seconds, and how soon?"""

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from bench.beside.client import Stream, ask, read
from bench.beside.texts import words
from bench.fleet.fronts import Front
from worker_orcd.child_process import wait_until

MISSED_SEC = 5.0
"""What still computes so long after its cancel has missed it."""
POLL_SEC = 0.005
STUCK_SEC = 120.0
"""What computes for so long is reported as stuck."""
PATH = "/v1/chat/completions"
UNDISTURBED_SEC = 9.0
"""A job that nobody stops computes so long, and so for longer than `MISSED_SEC` after any cancel."""
CALIBRATION_TOKENS = 300
MIN_TOKENS = 1000
"""Also where the machine was slow just then, and becomes faster."""
PROMPT_TOKENS = 1500


@dataclass(frozen=True, slots=True)
class Kind:
    """How a request is made and cancelled.

    Attributes:
        name: for the table.
        stream: whether its answer is streamed.
        prefill: whether it is cancelled while its prompt is computed, or else while it generates.
        by_request: cancelled by `POST /cancel` instead of by closing the connection.
    """

    name: str
    stream: bool
    prefill: bool = False
    by_request: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("streaming, in decode", stream=True),
        Kind("streaming, in prefill", stream=True, prefill=True),
        Kind("non-streaming, in decode", stream=False),
        Kind("non-streaming, in prefill", stream=False, prefill=True),
        Kind("streaming, in decode, POST /cancel", stream=True, by_request=True),
        Kind("non-streaming, in decode, POST /cancel", stream=False, by_request=True),
    )
}


@dataclass(slots=True)
class Figures:
    """What came of the cancels of one kind.

    Attributes:
        freed_ms: from each cancel until no engine computed any more, of those that were not missed.
        missed: cancels after which an engine still computed after `MISSED_SEC`.
        longest_sec: the longest computing after a cancel.
    """

    freed_ms: list[float] = field(default_factory=list)
    missed: int = 0
    longest_sec: float = 0.0


def measure(front: Front, kind: Kind, cancels: int, tokens: int) -> Figures:
    """Cancel so many requests of a kind, which would generate so many tokens, each at a random moment.

    Of those in prefill only a quarter, since what a front misses there computes for half a minute.
    """
    figures = Figures()
    for number in range(max(1, cancels // 4) if kind.prefill else cancels):
        moment = random.Random(number)
        took = _until_idle(front, _begun(front, kind, tokens, moment))
        figures.longest_sec = max(figures.longest_sec, took)
        if took > MISSED_SEC:
            figures.missed += 1
        else:
            figures.freed_ms.append(took * 1000)
    return figures


def enough_tokens(front: Front) -> int:
    """How many tokens a request has to generate that takes `UNDISTURBED_SEC`."""
    plain = Kind("", stream=True)
    took = 0.0
    for text in ("warm", "measured"):
        began = time.perf_counter()
        body = _body(front, plain, text, CALIBRATION_TOKENS)
        Stream(front.port, PATH, body).finished()
        took = time.perf_counter() - began
    return max(MIN_TOKENS, round(CALIBRATION_TOKENS * UNDISTURBED_SEC / took))


def _body(front: Front, kind: Kind, text: str, tokens: int) -> dict[str, object]:
    return {
        "model": "bench",
        "messages": [{"role": "user", "content": text}],
        "stream": kind.stream,
        "max_tokens": tokens,
        **front.fields,
    }


def _begun(front: Front, kind: Kind, tokens: int, moment: random.Random) -> Callable[[], None]:
    """Send a request, and wait for a moment in its phase. Returns its cancel."""
    text = words(secrets.token_hex(8), PROMPT_TOKENS if kind.prefill else 30)
    name = f"bench-{secrets.token_hex(8)}"
    request = Stream(front.port, PATH, _body(front, kind, text, tokens), f"X-Job-Id: {name}\r\n")
    wait_until(front.computing, within_sec=30, what="computing")
    if kind.prefill:
        time.sleep(moment.uniform(0.0, 0.5))
    elif kind.stream:
        wanted = moment.randint(3, 30)
        read([request], lambda: len(request.arrivals) >= wanted)
    else:
        time.sleep(moment.uniform(0.3, 1.5))
    return partial(_ask, front, name, request) if kind.by_request else request.close


def _ask(front: Front, name: str, request: Stream) -> None:
    """Cancel by a request of its own; the connection of the cancelled one stays open meanwhile."""
    status, _ = ask(front.port, "POST", "/cancel", {"job_id": name})
    request.close()
    if status != 202:
        raise RuntimeError(f"a cancel was answered with {status}")


def _until_idle(front: Front, cancel: Callable[[], None]) -> float:
    """Cancel, and wait until no engine computes. Returns how long that took, in seconds.

    Raises:
        TimeoutError: an engine computes without end.
    """
    began = time.perf_counter()
    cancel()
    while front.computing():
        if time.perf_counter() - began > STUCK_SEC:
            raise TimeoutError(f"an engine behind {front.name} computes for {STUCK_SEC:.0f} s after a cancel")
        time.sleep(POLL_SEC)
    return time.perf_counter() - began
