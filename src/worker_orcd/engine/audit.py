"""The engine's audit of KV cells: compares the cells that runs should hold with the model's count (G4). Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """Sequence id `sequence` holds `counted` KV cells and should hold `expected`."""

    sequence: int
    expected: int
    counted: int


def differences(expected: Mapping[int, int], counted: Sequence[int]) -> list[Difference]:
    """Compare the cells that runs should hold with the model's count, for every sequence id.

    An id without a run should hold no cells.
    """
    return [
        Difference(sequence, expected.get(sequence, 0), cells)
        for sequence, cells in enumerate(counted)
        if cells != expected.get(sequence, 0)
    ]
