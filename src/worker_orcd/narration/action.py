"""Base classes of the catalogue's actions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

Level = Literal["INFO", "WARN", "ERROR"]

ALWAYS: Final = "always"
"""The variant of an action that has only one sentence."""

OPERATORS: Final = "operators only"
"""Marks a field that only operators may see: it contains a path, or reveals other tenants' load."""


EventFields = dict[str, str | int | float | bool | None]
"""The fields of one event, as written."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A level and a sentence. `{name}` is replaced by the field with this name."""

    level: Level
    template: str


class BaseAction:
    """An action of the catalogue."""

    __slots__ = ()

    name: ClassVar[str]
    sentences: ClassVar[Mapping[str, Sentence]]
    """The sentences by variant."""
    for_tenants: ClassVar[str | None] = None
    """The sentence for tenants, if one of `sentences` has a field for operators."""
    acts_on: ClassVar[str]
    """The template of `target`, with `{name}` for a field. Also used for the documentation."""

    def variant(self) -> str:
        """Return the key of the sentence in `sentences` for this event."""
        return ALWAYS

    def target(self) -> str:
        """Return the object of the action, for example `job:job-7`."""
        return self.acts_on


class WorkerAction(BaseAction):
    """An action of the worker as a whole. It belongs to no tenant. Every tenant sees it, without fields for
    operators."""

    __slots__ = ()

    acts_on: ClassVar[str] = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAction(BaseAction):
    """An action on one job."""

    acts_on: ClassVar[str] = "job:{job_id}"
    job_id: Annotated[str, "the job"]

    def target(self) -> str:
        """Return the job."""
        return f"job:{self.job_id}"
