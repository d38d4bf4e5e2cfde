"""Index of computed token prefixes: finds the warm or live sequence that shares a new prompt's longest prefix. Pure.

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
"""Token ids. Passing an array avoids a conversion."""


def as_tokens(tokens: Tokens) -> TokenArray:
    """Token ids as an array. Returns an array unchanged."""
    return np.asarray(tokens, np.int32)


def common_prefix(first: TokenArray, second: TokenArray) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    at = int(differs.argmax()) if length else 0
    return at if length and differs[at] else length


@dataclass(frozen=True, slots=True)
class Match(Generic[Key]):
    """The entry `key` shares the first `length` tokens of the lookup."""

    key: Key
    length: int


class PrefixIndex(Generic[Key]):
    """Token sequences by namespace. Its size is that of its entries, which the owner bounds."""

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
        """The entry with the longest usable common prefix with `tokens`; None if no entry shares a usable token.

        Args:
            namespace: only entries of this namespace are searched.
            tokens: the tokens to look up.
            usable: takes an entry's key and the length of the common prefix, and returns how many of these tokens can
                be reused. Of a recurrent state, for example, all tokens can be reused or none.
        """
        wanted = as_tokens(tokens)
        best: Match[Key] | None = None
        for key, held in self._entries.get(namespace, {}).items():
            length = usable(key, common_prefix(held, wanted))
            if length > (best.length if best else 0):
                best = Match(key, length)
        return best

    def common(self, namespace: str, key: Key, tokens: Tokens) -> int:
        """Number of leading tokens that an entry shares with `tokens`; 0 if there is no such entry."""
        held = self._entries.get(namespace, {}).get(key)
        return 0 if held is None else common_prefix(held, as_tokens(tokens))

    def begins_with(self, namespace: str, key: Key, other: Key) -> bool:
        """Whether one entry begins with all tokens of another."""
        entries = self._entries.get(namespace, {})
        return common_prefix(entries[key], entries[other]) == len(entries[other])

    def __len__(self) -> int:
        """Number of entries in all namespaces."""
        return sum(map(len, self._entries.values()))
