"""A table as a value: what it says, before anything of how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import isfinite
from typing import Literal


@dataclass(frozen=True, slots=True)
class Cell:
    """One number. value None: a dash, and why; low, high: its interval; mark: what stands behind it; best: of those
    that it is compared with; decimals: as shown, a number that they would hide is shown by its first digits."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    mark: str = ""
    best: bool = False
    why: str = ""
    decimals: int = 3

    @property
    def shown(self) -> str:
        """The number in words, with an ASCII minus; empty for a dash."""
        return "" if self.value is None else _worded(self.value, self.decimals)

    @property
    def ends(self) -> tuple[str, str] | None:
        """Of the interval, in words; None where there is none."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return _worded(self.low, self.decimals), _worded(self.high, self.decimals)


def _worded(value: float, decimals: int) -> str:
    if value and abs(value) < 0.5 * 10.0**-decimals:
        return f"{value:.1e}"
    return f"{value + 0.0:.{decimals}f}"


def measured(
    value: float, *, low: float | None = None, high: float | None = None, n: int | None = None, decimals: int = 3
) -> Cell:
    """A cell of a number, or a dash where it is not one; an interval counts with both ends."""
    if not isfinite(value):
        return Cell(why="undefined: too few cases, or nothing varied", decimals=decimals)
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        low = high = None
    return Cell(value, low, high, n, decimals=decimals)


def with_best(cells: Sequence[Cell], better: Literal["lower", "higher"]) -> tuple[Cell, ...]:
    """The same cells, the best of at least two numbers marked so, and all that equal it."""
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) < 2:
        return tuple(cells)
    best = min(values) if better == "lower" else max(values)
    return tuple(replace(cell, best=cell.value == best) for cell in cells)


@dataclass(frozen=True, slots=True)
class Column:
    """name: its heading; group: what neighbouring columns stand under together."""

    name: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """name: of its files; stub: heading of the rows' names; notes: below it; missing: what would fill it, where it has
    no number at all."""

    name: str
    title: str
    caption: str
    stub: str
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""

    @property
    def filled(self) -> bool:
        return any(cell.value is not None for row in self.rows for cell in row.cells)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Of its dashes, each once: footnote k, from 1, is reason k - 1."""
        return tuple(dict.fromkeys(cell.why for row in self.rows for cell in row.cells if cell.value is None))

    @property
    def n(self) -> int | None:
        """The count behind every number that has one, where it is the same one."""
        counts = {cell.n for row in self.rows for cell in row.cells if cell.n is not None}
        return counts.pop() if len(counts) == 1 else None

    @property
    def starred(self) -> bool:
        return any(cell.best for row in self.rows for cell in row.cells)


def spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """The headings that neighbouring columns stand under, and how many columns each has."""
    return [(name, len(list(members))) for name, members in groupby(columns, lambda column: column.group)]
