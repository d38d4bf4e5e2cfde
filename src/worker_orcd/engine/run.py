"""A run as the engine computes it."""

import msgspec
from msgspec.structs import replace

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

    def for_model(self, embeds_behind_prefix: bool) -> "Run":
        """The same run, but without prefix reuse if it is an embedding that needs all rows of its prompt."""
        if self.request.embed is None or embeds_behind_prefix:
            return self
        return replace(self, request=replace(self.request, cache=None))
