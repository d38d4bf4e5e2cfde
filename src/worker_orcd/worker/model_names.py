"""The names by which clients may ask for the model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from worker_orcd.printable import printable

_PART = re.compile(r"-\d{5}-of-\d{5}$")
"""The end of the name of one part of a split file."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The model's names: the listed ones and further accepted ones."""

    listed: tuple[str, ...]
    """Names in `/v1/models`, the preferred one first."""
    also: frozenset[str]
    """Accepted, but not listed: the file's name, and the name in the file, which often has spaces."""

    @classmethod
    def of(cls, path: str, aliases: tuple[str, ...] = (), name: str = "") -> Self:
        """Names of the model in the file at `path`, whose `general.name` is `name`; empty if that is unknown."""
        of_file = printable(_PART.sub("", Path(path).name.removesuffix(".gguf")))
        return cls(aliases or (of_file,), frozenset({of_file, name} - {""}))

    def __contains__(self, name: str) -> bool:
        return name in self.listed or name in self.also

    @property
    def preferred(self) -> str:
        """The name that answers give to a client that named no model."""
        return self.listed[0]

    def with_name(self, name: str) -> Self:
        """Accept also the name that the engine found in the file."""
        return replace(self, also=self.also | {name})
