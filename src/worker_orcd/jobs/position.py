"""The position of an event in a job's stream: its SSE `id:`, `<incarnation>.<number>`."""

import re
from typing import NamedTuple, Self

_POSITION = re.compile(r"([0-9a-f]{20})\.([0-9]{1,18})")


class Position(NamedTuple):
    """The position of one event of one use of a job id.

    Attributes:
        incarnation: identifies the use of the job id. Unique across uses and across restarts of the worker.
        number: the event's index in the stream: 0, 1, 2 …
    """

    incarnation: str
    number: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an event's id.

        Raises:
            ValueError: the text is not an event's id.
        """
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError("not the id of an event")
        return cls(found[1], int(found[2]))
