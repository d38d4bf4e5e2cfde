"""What the engine and its confined process both know of a chat template. Only that process imports jinja2."""

import msgspec

from worker_orcd.engine.templates.special_tokens import SpecialToken


class Source(msgspec.Struct, frozen=True):
    """The chat template of a model file, and the data of its vocabulary that rendering needs.

    Attributes:
        source: the template.
        bos, eos: the texts of these tokens; "" without such a token.
        adds_bos, adds_eos: whether the tokenizer adds the token itself; then the template's own one is removed.
        special: the vocabulary's special tokens.
    """

    source: str
    bos: str
    eos: str
    adds_bos: bool = False
    adds_eos: bool = False
    special: tuple[SpecialToken, ...] = ()


class TemplateFault(Exception):
    """The template cannot be used, or fails on this conversation. The message is a sentence for clients."""
