"""llama.cpp's tokenizer for one vocabulary. The `lib` argument is the `llama_cpp` module."""

import ctypes
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.grammars.messages import Vocabulary
from worker_orcd.engine.infill import InfillTokens, infill
from worker_orcd.engine.model import PromptRefused
from worker_orcd.engine.templates.special_tokens import Piece, SpecialToken
from worker_orcd.engine.text_cuts import PART_BYTES, TextCuts

_UNKNOWN, _CONTROL, _USER_DEFINED, _LSTRIP, _RSTRIP = 1, 1 << 3, 1 << 4, 1 << 7, 1 << 8
"""llama_token_attr."""
_PIECE_BYTES = 256


class Tokenizer:
    """Turns text into token ids and back. Thread-safe, also while a step runs."""

    def __init__(self, lib: Any, vocabulary: Any) -> None:
        """For a `llama_vocab` of a loaded model."""
        self._lib = lib
        self._vocabulary = vocabulary
        self._pieces: dict[int, bytes] = {}

    def encode(
        self, text: str, *, parse_special: bool, add_special: bool, in_hand: CurrentPrompt | None = None
    ) -> list[int]:
        """Token ids of a text.

        Args:
            text: the text. Invalid Unicode in it becomes question marks.
            parse_special: recognize special tokens in the text.
            add_special: add the tokens with which the vocabulary begins and ends each text.
            in_hand: dropping it ends the tokenization at the next cut of a long text.

        Raises:
            PromptRefused: llama.cpp cannot tokenize it, or it was dropped.
        """
        if not text and not add_special:
            return []
        raw = text.encode("utf-8", "replace")
        if len(raw) <= PART_BYTES:
            return self._encode(raw, parse_special=parse_special, add_special=add_special)
        beginning, end = self._frame if add_special else ([], [])
        tokens = list(beginning)
        for part in (self._cuts if parse_special else self._plain_cuts).parts(raw):
            if in_hand is not None and in_hand.dropped:
                raise PromptRefused("the job has ended")
            tokens += self._encode(part, parse_special=parse_special, add_special=False)
        return tokens + end

    def _encode(self, raw: bytes, *, parse_special: bool, add_special: bool) -> list[int]:
        size = len(raw) + 8
        buffer = (self._lib.llama_token * size)()
        count = self._lib.llama_tokenize(
            self._vocabulary, raw, len(raw), buffer, size, add_special, parse_special
        )
        if count < 0:
            raise PromptRefused("the prompt cannot be tokenized")
        return list(buffer[:count])

    def encode_pieces(self, pieces: Iterable[Piece], in_hand: CurrentPrompt | None = None) -> list[int]:
        """Token ids of a rendered conversation. The result is the same as tokenizing the whole text at once.

        Pieces are separated only by special tokens, where llama.cpp itself splits a text. So if the vocabulary adds a
        space before each text (`add_space_prefix`), a space follows each special token in both cases.
        """
        beginning, end = self._frame
        tokens = list(beginning)
        for piece in pieces:
            if piece.parsed:
                tokens += self.encode(piece.text, parse_special=True, add_special=False, in_hand=in_hand)
            else:
                tokens += self._encode_plain(piece.text, in_hand)
        return tokens + end

    def encode_infill(self, request: str, max_tokens: int) -> list[int]:
        """Token ids of an infill prompt. Shortens its extra files to fit into `max_tokens`.

        Raises:
            PromptRefused: the vocabulary has no infill tokens.
        """
        tokens = InfillTokens.of(self._lib, self._vocabulary)
        return infill(request, tokens, self._frame[0], self._encode_plain, max_tokens)

    def _encode_plain(self, text: str, in_hand: CurrentPrompt | None = None) -> list[int]:
        """Token ids of a text without control tokens.

        Some of llama.cpp's tokenizers (RWKV, PLaMo 2) treat control tokens like ordinary words. Then the text is split
        inside these words.
        """
        tokens = self.encode(text, parse_special=False, add_special=False, in_hand=in_hand)
        special = [token for token in tokens if self._special.get(token, 0) & (_CONTROL | _UNKNOWN)]
        word = next((word for word in map(self._text, special) if len(word) > 1 and word in text), None)
        if word is None:
            # The unknown token may stay: it represents text that the vocabulary lacks.
            return [token for token in tokens if not self._special.get(token, 0) & _CONTROL]
        first, *rest = text.split(word)
        parts = [first, *(word[1:] + part for part in rest)]
        tokens = []
        for part in (*(part + word[0] for part in parts[:-1]), parts[-1]):
            tokens += self._encode_plain(part, in_hand)
        return tokens

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer adds a token before each text."""
        return bool(self._frame[0])

    @property
    def adds_eos(self) -> bool:
        """Whether the tokenizer adds a token after each text."""
        return bool(self._frame[1])

    @property
    def bos(self) -> str:
        """The text of the BOS token, "" if there is none."""
        return self._text(self._lib.llama_vocab_bos(self._vocabulary))

    @property
    def eos(self) -> str:
        """The text of the EOS token, "" if there is none."""
        return self._text(self._lib.llama_vocab_eos(self._vocabulary))

    def special_tokens(self) -> tuple[SpecialToken, ...]:
        """All tokens that llama.cpp looks for in a text before it tokenizes the rest."""
        return tuple(
            SpecialToken(
                self._text(token),
                control=bool(attribute & (_CONTROL | _UNKNOWN)),
                lstrip=bool(attribute & _LSTRIP),
                rstrip=bool(attribute & _RSTRIP),
            )
            for token, attribute in self._special.items()
        )

    @cached_property
    def _cuts(self) -> TextCuts:
        return self._cuts_without(0)

    @cached_property
    def _plain_cuts(self) -> TextCuts:
        """Of a text in which control tokens are not recognized. llama.cpp makes some of a user's tokens control tokens,
        too."""
        return self._cuts_without(_CONTROL | _UNKNOWN)

    def _cuts_without(self, attributes: int) -> TextCuts:
        found = {self.text(token): a for token, a in self._special.items() if not a & attributes}
        return TextCuts(found, [text for text, a in found.items() if a & (_LSTRIP | _RSTRIP)])

    @cached_property
    def _special(self) -> dict[int, int]:
        """The attributes of all special tokens."""
        count = self._lib.llama_vocab_n_tokens(self._vocabulary)
        attributes = (
            (token, self._lib.llama_vocab_get_attr(self._vocabulary, token)) for token in range(count)
        )
        return {token: a for token, a in attributes if a & (_CONTROL | _USER_DEFINED | _UNKNOWN)}

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; none for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        size = _PIECE_BYTES
        buffer = ctypes.create_string_buffer(size)
        length = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, False)
        if length < 0:
            size = -length
            buffer = ctypes.create_string_buffer(size)
            length = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, False)
        return buffer.raw[: max(0, length)]

    def vocabulary(self) -> Vocabulary:
        """All tokens, for grammars. Takes up to a second."""
        tokens, ends = [], []
        for token in range(self._lib.llama_vocab_n_tokens(self._vocabulary)):
            is_end = bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))
            piece = b"" if is_end else self._piece(token)
            tokens.append(piece or b"\xff" + (self._lib.llama_vocab_get_text(self._vocabulary, token) or b""))
            if is_end:
                ends.append(token)
        return Vocabulary(tokens, ends)

    def text(self, token: int) -> bytes:
        """A token's text in the vocabulary; for a control token, its name."""
        return bytes(self._lib.llama_vocab_get_text(self._vocabulary, token) or b"")

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The tokens that llama.cpp adds before and after each text."""
        added = self.encode("", parse_special=False, add_special=True)
        bos = self._lib.llama_vocab_bos(self._vocabulary)
        beginning = 1 if added[:1] == [bos] and (len(added) > 1 or self._adds_bos_token) else 0
        return added[:beginning], added[beginning:]

    @property
    def _adds_bos_token(self) -> bool:
        return bool(self._lib.llama_vocab_get_add_bos(self._vocabulary))

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        return (self._lib.llama_vocab_get_text(self._vocabulary, token) or b"").decode("utf-8", "replace")
