"""The engine's audit of KV cells: compares what its runs should hold with what the model counts (G4). Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """Sequence id `sequence` holds `counted` KV cells and should hold `expected`."""

    sequence: int
    expected: int
    counted: int


def differences(expected: Mapping[int, int], counted: Sequence[int]) -> list[Difference]:
    """Compare the cells that runs should hold, by sequence id, with the count of every sequence id.

    An id that no run has should hold nothing.
    """
    return [
        Difference(sequence, expected.get(sequence, 0), cells)
        for sequence, cells in enumerate(counted)
        if cells != expected.get(sequence, 0)
    ]
