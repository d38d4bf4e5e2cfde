"""A run as the engine computes it."""

import msgspec

from worker_orcd.protocol.messages import Submit


class Run(msgspec.Struct, frozen=True):
    """An accepted run that has begun.

    Attributes:
        request: its `Submit` message. The engine does not keep `prompt` and `tokens` in it.
        prompt: the prompt's token ids.
        max_tokens, generated: as in `Begin`.
    """

    request: Submit
    prompt: tuple[int, ...]
    max_tokens: int
    generated: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """The front's number for this run, by which messages name it."""
        return self.request.run
