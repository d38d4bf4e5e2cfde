"""Counter-based randomness: the random number for token *i* depends on (seed, i) alone.

So a job draws the same numbers when it is requeued or runs beside other jobs.
"""

from hashlib import blake2b

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's 32-bit seed that means "choose a seed at random"; never drawn here."""


def draw_seed(seed: int, index: int) -> int:
    """The 32-bit seed of the draw of token `index` of a job with this 64-bit seed."""
    salt = 0
    while True:
        digest = blake2b(
            seed.to_bytes(8, "little") + index.to_bytes(8, "little") + salt.to_bytes(4, "little"),
            digest_size=4,
        ).digest()
        drawn = int.from_bytes(digest, "little")
        if drawn != _RANDOM_SEED:
            return drawn
        salt += 1
