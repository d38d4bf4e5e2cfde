"""Log probabilities of tokens by the raw logits: before bias, penalties and filters, at temperature 1. Pure."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from worker_orcd.sampling import MIN_LOGPROB, Logprobs, TokenLogprob

_BLOCK = 64


def logprobs_of(logits: bytes, token: int, best: int, name: Callable[[int], bytes]) -> Logprobs:
    """A token's log probability, then those of the `best` likeliest tokens, likeliest first.

    Args:
        logits: 32-bit floats over the vocabulary.
        token: the one that was drawn, or stands in the prompt.
        best: how many others; the token may be among them.
        name: a token's bytes, as it is shown.
    """
    scores = np.frombuffer(logits, np.float32)
    highest = scores.max()
    total = float(highest) + float(np.log(np.exp(scores - highest).sum(dtype=np.float64)))
    return tuple(
        TokenLogprob(one, name(one), max(float(scores[one]) - total, MIN_LOGPROB))
        for one in (token, *_likeliest(scores, best))
    )


def _likeliest(scores: NDArray[np.float32], number: int) -> list[int]:
    """So many tokens with the highest scores, of equal ones those with the lowest ids first.

    So many blocks have a score of at least the last of the highest blocks' scores, so no token below it is wanted: a
    tenth of the time that `argpartition` takes.
    """
    if not number:
        return []
    blocks = np.maximum.reduceat(scores, np.arange(0, len(scores), _BLOCK))
    least = np.partition(blocks, -number)[-number] if number < len(blocks) else -np.inf
    candidates = np.flatnonzero(scores >= least)
    order = np.lexsort((candidates, -scores[candidates]))[:number]
    found: list[int] = candidates[order].tolist()
    return found
