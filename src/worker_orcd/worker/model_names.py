"""The names that clients may use for the model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from worker_orcd.printable import printable

_PART = re.compile(r"-\d{5}-of-\d{5}$")
"""The suffix of the name of one part of a split file."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The model's names: listed ones, and others that are accepted."""

    listed: tuple[str, ...]
    """Names in `/v1/models`, the preferred one first."""
    also: frozenset[str]
    """Accepted but not listed: the file's name, and the name in the file, which often has spaces."""

    @classmethod
    def of(cls, path: str, aliases: tuple[str, ...] = (), name: str = "") -> Self:
        """Names of the model in the file at `path`. `name`: its `general.name`, empty if unknown."""
        of_file = printable(_PART.sub("", Path(path).name.removesuffix(".gguf")))
        return cls(aliases or (of_file,), frozenset({of_file, name} - {""}))

    def __contains__(self, name: str) -> bool:
        return name in self.listed or name in self.also

    @property
    def preferred(self) -> str:
        """The name in responses to requests that name no model."""
        return self.listed[0]

    def with_name(self, name: str) -> Self:
        """These names and the name that the engine found in the file."""
        return replace(self, also=self.also | {name})
