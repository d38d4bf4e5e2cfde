"""The engine's audit of KV cells: compares the cells that runs should hold with the model's count (G4). Pure."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """Sequence id `sequence` holds `counted` KV cells and should hold `expected`."""

    sequence: int
    expected: int
    counted: int


def differences(expected: Mapping[int, int], counted: Mapping[int, int]) -> list[Difference]:
    """Compare the cells that runs should hold with the model's count, for every sequence id that was counted.

    An id without a run should hold no cells.
    """
    return [
        Difference(sequence, expected.get(sequence, 0), cells)
        for sequence, cells in counted.items()
        if cells != expected.get(sequence, 0)
    ]
