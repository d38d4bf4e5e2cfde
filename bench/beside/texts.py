"""Texts whose number of tokens is known: each word is one token of the bundled model's vocabulary, with its space.

A text begins with random words, so two texts of different seeds share no prefix worth keeping.
"""

import random

_WORDS = (
    "the sea wind light house tower ship storm night morning water stone door window lamp oil book day year "
    "hand voice story road river mountain bird tree field city bridge train station letter paper table chair "
    "room wall floor garden rain snow summer winter music song child mother father friend doctor teacher "
    "student school market money number answer question problem idea plan rule law power fire "
)
WORDS = tuple(_WORDS.split())


def words(seed: str, tokens: int) -> str:
    """A text of so many tokens, the same for the same seed. Text that follows has to begin with a space."""
    return "".join(f" {word}" for word in random.Random(seed).choices(WORDS, k=tokens))
