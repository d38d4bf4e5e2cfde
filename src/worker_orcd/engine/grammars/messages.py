"""Messages between the engine and the processes that compile grammars."""

import msgspec

from worker_orcd.protocol.messages import Constraint


class Vocabulary(msgspec.Struct, frozen=True):
    """A model's tokens.

    Attributes:
        tokens: the bytes that each token adds to the text; for a token that adds none, the byte 0xFF and its name.
        ends: the end-of-generation tokens.
    """

    tokens: list[bytes]
    ends: list[int]


class Begin(msgspec.Struct, frozen=True):
    """Compile a constraint and advance by the tokens generated so far. Answered by `Mask` or `Fault`.

    Attributes:
        constraint: what to compile.
        generated: the tokens so far.
        ignore_eos: end-of-generation tokens are allowed only where no other token is.
        opened: the mark with which the prompt opens the reasoning, "" if it does not. Only with tools.
    """

    constraint: Constraint
    generated: tuple[int, ...] = ()
    ignore_eos: bool = False
    opened: str = ""


class Accept(msgspec.Struct, frozen=True):
    """Advance by a generated token. Answered by `Mask` or `Fault`."""

    token: int


class Mask(msgspec.Struct, frozen=True, tag=True):
    """Which tokens may come next: token *t* may if bit *t* is set, the lowest bit of a byte first.

    `complete`: the output is complete, and only an end-of-generation token can follow.
    """

    bits: bytes
    complete: bool


class Fault(msgspec.Struct, frozen=True, tag=True):
    """The constraint cannot be used or exceeds its limits. The message is a sentence for clients.

    `param`: the field at fault, if the constraint has several.
    """

    reason: str
    param: str | None = None
