"""Log probabilities of tokens by the raw logits: before bias, penalties and filters, at temperature 1. Pure."""

from collections.abc import Callable

import numpy as np

from worker_orcd.sampling import MIN_LOGPROB, Logprobs, TokenLogprob


def logprobs_of(logits: bytes, token: int, best: int, name: Callable[[int], bytes]) -> Logprobs:
    """A token's log probability, then those of the `best` likeliest tokens, likeliest first.

    Args:
        logits: 32-bit floats over the vocabulary.
        token: the one that was drawn, or stands in the prompt.
        best: how many others; the token may be among them.
        name: a token's bytes, as it is shown.
    """
    scores = np.frombuffer(logits, np.float32).astype(np.float64)
    highest = scores.max()
    total = highest + np.log(np.exp(scores - highest).sum())
    likeliest = np.argpartition(-scores, best - 1)[:best] if best else np.empty(0, np.int64)
    # Of equal ones, the lowest id comes first.
    ordered = sorted(likeliest.tolist(), key=lambda one: (-scores[one], one))
    return tuple(
        TokenLogprob(one, name(one), max(float(scores[one] - total), MIN_LOGPROB))
        for one in (token, *ordered)
    )
