"""Counter-based randomness: what is drawn for token *i* depends on (seed, i) alone.

A job that is requeued, or runs beside others, draws the same numbers as alone.
"""

from hashlib import blake2b

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's 32-bit seed that means "take any"; never to be drawn."""


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
