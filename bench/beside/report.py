"""What was measured, as figures of rounds, and how it is shown: a table on the terminal, another one in markdown.

python -m bench.beside.report FILE     the markdown table of what `--json FILE` has written
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rounds = Sequence[Mapping[str, float]]
"""For each round what a workload measured, by name: `ours`, `peer`, `idle` …"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure, what stands beside it, and what their ratio has to be.

    Attributes:
        title: what is measured, unit included.
        figure: the name of the figure.
        beside: the name of the figure that it is divided by in each round; none: the figure itself is held against
            the target.
        target: the bound; none: shown for information.
        at_least: whether the target is a lower bound.
        worst: the worst round counts, not the median: for figures that are a promise about all.
    """

    title: str
    figure: str = "ours"
    beside: str | None = "peer"
    target: float | None = None
    at_least: bool = False
    worst: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A row with its results, as text."""

    title: str
    ours: str
    beside: str
    ratio: str
    target: str
    met: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADINGS`."""
        return self.title, self.ours, self.beside, self.ratio, self.target, self.met


HEADINGS = ("workload", "ours", "beside", "ratio", "target", "met")
NOTHING = "-"


def quantile(values: Iterable[float], share: float) -> float:
    """The value that so many of the others do not exceed.

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """The median, and the smallest and largest where there are several."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} to {number(max(values))})"


def line(row: Row, rounds: Rounds) -> Line:
    """A row's results. Rounds without one of its figures do not count."""
    names = [row.figure, *([row.beside] if row.beside else [])]
    whole = [each for each in rounds if all(name in each for name in names)]
    sign = "≥" if row.at_least else "≤"
    target = NOTHING if row.target is None else f"{sign} {row.target:g}"
    if not whole:
        return Line(row.title, NOTHING, NOTHING, NOTHING, target, NOTHING)
    ours = [each[row.figure] for each in whole]
    judged, beside, ratio = ours, NOTHING, NOTHING
    if row.beside:
        judged = [each[row.figure] / each[row.beside] for each in whole]
        beside = f"{row.beside.replace('_', ' ')}: {spread([each[row.beside] for each in whole])}"
        ratio = spread(judged)
    return Line(row.title, spread(ours), beside, ratio, target, _met(row, judged))


def _met(row: Row, judged: Sequence[float]) -> str:
    if row.target is None:
        return NOTHING
    extreme = min if row.at_least else max
    value = extreme(judged) if row.worst else statistics.median(judged)
    return "yes" if (value >= row.target if row.at_least else value <= row.target) else "NO"


def table(lines: Sequence[Line]) -> str:
    """For a terminal: columns as wide as their widest cell."""
    rows = [HEADINGS, *(each.cells for each in lines)]
    widths = [max(len(cells[n]) for cells in rows) for n in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    )


def markdown(result: Mapping[str, Any]) -> str:
    """What `--json` has written, as docs/performance.md shows it: the conditions, then the table."""
    conditions = "; ".join(f"{name}: {value}" for name, value in result["conditions"].items())
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(Line(**each).cells for each in result["lines"])]
    return "\n".join([conditions, "", *(f"| {' | '.join(cells)} |" for cells in rows)])


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
