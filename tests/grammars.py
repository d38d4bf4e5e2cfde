"""A small vocabulary, and outputs that a constraint allows, drawn at random."""

import random
from typing import Protocol

from worker_orcd.engine.grammars.messages import Mask, Vocabulary

END = 256
_WORDS = (
    b'{"',
    b'":',
    b'": ',
    b'", "',
    b'"}',
    b"true",
    b"null",
    b"  ",
    b"\n  ",
    b"ab",
    b"\xc3\xa9",
    b"12",
    b"}}",
)
TOY = Vocabulary([*(bytes([byte]) for byte in range(256)), b"\xff<end>", *_WORDS], [END])
"""A token for each byte, one that ends, and some of several bytes."""
IDS = {text: id_ for id_, text in reversed(list(enumerate(TOY.tokens)))}


class Follows(Protocol):
    """What follows an output and says what may come next."""

    def accept(self, tokens: tuple[int, ...]) -> None:
        """The output goes on with these."""

    def mask(self) -> Mask:
        """What may come next."""


def allowed(mask: Mask) -> list[int]:
    """The tokens of a mask."""
    bits = int.from_bytes(mask.bits, "little")
    return [token for token in range(len(TOY.tokens)) if bits >> token & 1]


def tokens_of(text: str) -> tuple[int, ...]:
    """A token for each byte."""
    return tuple(text.encode())


def write(matcher: Follows, rng: random.Random, max_tokens: int = 400) -> bytes | None:
    """An output of random tokens, None if it does not end by itself. Ends and closing brackets are drawn more often."""
    written = b""
    for _ in range(max_tokens):
        mask = matcher.mask()
        tokens = allowed(mask)
        if mask.complete or (END in tokens and rng.random() < 0.5):  # a coin
            return written
        tokens = [token for token in tokens if token != END]
        closing = [token for token in tokens if TOY.tokens[token] in (b'"', b"}", b"]", b'"}')]
        token = rng.choice(closing if closing and rng.random() < 0.4 else tokens)  # a loaded coin
        written += TOY.tokens[token]
        matcher.accept((token,))
    return None
