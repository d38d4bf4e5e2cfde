"""The index of computed token prefixes: which kept or live sequence begins like a new prompt. Pure.

Entries are private to a namespace (an API key and a `cache_salt`): a lookup in one namespace never depends on the
entries of another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key")
TokenArray = npt.NDArray[np.int32]
Tokens = TokenArray | Sequence[int]
"""Token ids. An array saves the time to make one of them."""


def as_tokens(tokens: Tokens) -> TokenArray:
    """Token ids as an array; an array stays itself."""
    return np.asarray(tokens, np.int32)


def common_prefix(first: TokenArray, second: TokenArray) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    at = int(differs.argmax()) if length else 0
    return at if length and differs[at] else length


@dataclass(frozen=True, slots=True)
class Match(Generic[Key]):
    """Entry `key` begins with the first `length` tokens that were looked up."""

    key: Key
    length: int


class PrefixIndex(Generic[Key]):
    """Token sequences by namespace. Grows and shrinks with its entries; its owner bounds it."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[Key, TokenArray]] = {}

    def put(self, namespace: str, key: Key, tokens: Tokens) -> None:
        """Add an entry, or replace the tokens of an entry with the same key."""
        self._entries.setdefault(namespace, {})[key] = as_tokens(tokens)

    def remove(self, namespace: str, key: Key) -> None:
        """Remove an entry. Harmless if there is none."""
        entries = self._entries.get(namespace)
        if entries is not None:
            entries.pop(key, None)
            if not entries:
                del self._entries[namespace]

    def longest(
        self, namespace: str, tokens: Tokens, usable: Callable[[Key, int], int] = lambda _key, length: length
    ) -> Match[Key] | None:
        """The entry whose usable common prefix with `tokens` is the longest; None if none is longer than 0 tokens.

        Args:
            namespace: only its entries are looked at.
            tokens: what to find a prefix of.
            usable: given an entry's key and the length of the common prefix, how many of these tokens the entry can
                hand over. A recurrent state, for one, hands over all that it has computed or nothing.
        """
        wanted = as_tokens(tokens)
        best: Match[Key] | None = None
        for key, held in self._entries.get(namespace, {}).items():
            length = usable(key, common_prefix(held, wanted))
            if length > (best.length if best else 0):
                best = Match(key, length)
        return best

    def common(self, namespace: str, key: Key, tokens: Tokens) -> int:
        """Number of leading tokens that an entry shares with these; 0 if there is no such entry."""
        held = self._entries.get(namespace, {}).get(key)
        return 0 if held is None else common_prefix(held, as_tokens(tokens))

    def begins_with(self, namespace: str, key: Key, other: Key) -> bool:
        """Whether one entry begins with all tokens of another."""
        entries = self._entries.get(namespace, {})
        return common_prefix(entries[key], entries[other]) == len(entries[other])

    def __len__(self) -> int:
        """Entries of all namespaces."""
        return sum(map(len, self._entries.values()))
