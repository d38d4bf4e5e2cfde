"""Fill-in-the-middle prompts, made with the special tokens that the model's vocabulary has for them.

The order is the one that llama-server documents (`[…]` is a special token):

    [repository]myproject [file]name0 text0 [file]name1 text1 … [file]filename [prefix]… [suffix]… [middle]prompt
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from worker_orcd.engine.model import PromptRefused

_REPOSITORY, _FILE = "myproject\n", "filename\n"
"""The names that llama-server uses, since requests contain none."""
_SNIPPET = "\n\n--- snippet ---\n\n"
"""llama-server's separator of texts where the vocabulary has no token that begins a file."""

Encode = Callable[[str], list[int]]
"""Token ids of a text, without special tokens."""


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """The special token ids of a vocabulary for infilling; None: the vocabulary has no such token."""

    prefix: int | None
    suffix: int | None
    middle: int | None
    repository: int | None
    file: int | None

    @classmethod
    def of(cls, lib: Any, vocabulary: Any) -> Self:
        """The tokens of a `llama_vocab`."""
        found = (
            lib.llama_vocab_fim_pre(vocabulary),
            lib.llama_vocab_fim_suf(vocabulary),
            lib.llama_vocab_fim_mid(vocabulary),
            lib.llama_vocab_fim_rep(vocabulary),
            lib.llama_vocab_fim_sep(vocabulary),
        )
        return cls(*(None if token < 0 else token for token in found))

    @property
    def required(self) -> tuple[int, int, int]:
        """The tokens that begin the prefix, the suffix and the middle.

        Raises:
            PromptRefused: the vocabulary lacks one of them.
        """
        if self.prefix is None or self.suffix is None or self.middle is None:
            named = {"prefix": self.prefix, "suffix": self.suffix, "middle": self.middle}
            missing = " and ".join(name for name, token in named.items() if token is None)
            raise PromptRefused(f"this model cannot fill in: its vocabulary has no {missing} token", "suffix")
        return self.prefix, self.suffix, self.middle


def infill(request: str, tokens: InfillTokens, bos: list[int], encode: Encode, max_tokens: int) -> list[int]:
    """Token ids of an infill prompt.

    Args:
        request: a JSON object with the texts `prefix`, `suffix` and `prompt`; `extra`, the list of other files or parts
            of files, each with `filename` and `text`, or null for a prompt without a repository; and `reserve`, the
            number of tokens to generate, null if not known.
        tokens: the vocabulary's special tokens.
        bos: the tokens that the vocabulary adds before each text.
        encode: tokenizes the texts.
        max_tokens: the most tokens that a job may have in all. If `extra` does not fit, its beginning is left out.

    Raises:
        PromptRefused: the vocabulary lacks a required token.
    """
    given = json.loads(request)
    prefix, suffix, middle = tokens.required
    gap = [
        prefix,
        *encode(given["prefix"]),
        suffix,
        *encode(given["suffix"]),
        middle,
        *encode(given["prompt"]),
    ]
    if given["extra"] is None:
        return bos + gap
    extra = _extra(given["extra"], tokens, encode)
    reserve = max_tokens // 4 if given["reserve"] is None else given["reserve"]
    room = max(0, max_tokens - len(bos) - len(gap) - reserve)
    return bos + extra[max(0, len(extra) - room) :] + gap


def _extra(chunks: list[dict[str, str]], tokens: InfillTokens, encode: Encode) -> list[int]:
    """The part of the prompt before the file with the gap."""
    extra = [] if tokens.repository is None else [tokens.repository, *encode(_REPOSITORY)]
    for chunk in chunks:
        named = [] if tokens.file is None else [tokens.file, *encode(f"{chunk['filename']}\n")]
        extra += [*(named or encode(_SNIPPET)), *encode(chunk["text"])]
    return extra if tokens.file is None else [*extra, tokens.file, *encode(_FILE)]
