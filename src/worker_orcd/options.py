"""What the command line shows of each option of the worker, without importing `Settings`, which takes much longer.

`settings.options()` derives it from the fields of `Settings`, and `python -m tools.docs` writes it to `options.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TABLE = Path(__file__).with_suffix(".json")
"""The generated file."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option, for help texts and the docs.

    Attributes:
        kind: how it is given: once with a value, repeatedly, or as a flag and its negation.
    """

    name: str
    flag: str
    variable: str
    default: str
    requirement: str
    description: str
    kind: Literal["value", "values", "switch"]


def table() -> list[Option]:
    """All options, in the order of `Settings`."""
    return [Option(**option) for option in json.loads(TABLE.read_text(encoding="utf-8"))]
