"""How far the explanations can be trusted: a few numbers in plain words, and the papers' tables behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from workflows.report.papers.source import Source
from workflows.report.papers.table import Cell, Column, Row, Table, with_best
from workflows.report.results import LeftOut

_NAMED = 6  # classes of one reason


@dataclass(frozen=True, slots=True)
class _Plain:
    """A measure in plain words. factor: to a percentage; reading: what is asked, and what is better."""

    name: str
    heading: str
    factor: float
    better: Literal["lower", "higher"]
    reading: str


_PLAIN = (
    _Plain(
        "pointing game",
        "Points at the finding",
        100.0,
        "higher",
        "How often the centre of the brightest spot lies in a marked finding of the class. More is better.",
    ),
    _Plain("iobb", "Covers the finding", 100.0, "higher", "How much of the marked finding is lit up. More is better."),
    _Plain(
        "ior",
        "Stays on the finding",
        100.0,
        "higher",
        "How much of all that is lit up lies on the marked finding. More is better.",
    ),
    _Plain(
        "inverse drop",
        "Shows what the answer needs",
        1.0,
        "higher",
        "How much of the probability goes when what is lit up is taken away. More is better.",
    ),
    _Plain(
        "average drop",
        "Shows what suffices",
        1.0,
        "lower",
        "How much of the probability goes when all but what is lit up is taken away. Less is better.",
    ),
)


@dataclass(frozen=True, slots=True)
class MissingRow:
    """What was not measured, of which classes, and why."""

    measure: str
    classes: str
    reason: str


@dataclass(frozen=True, slots=True)
class MeasuresPage:
    """plain: of the reported run alone; readings: of its rows, what they tell; tables: of all runs given; level: of the
    intervals, in percent."""

    plain: Table
    readings: Mapping[str, str]
    tables: tuple[Table, ...]
    left_out: tuple[MissingRow, ...]
    level: str


def measures_page(run: Source, tables: Sequence[Table]) -> MeasuresPage:
    """The section of a run in words and tables."""
    return MeasuresPage(
        _plain(run),
        {item.heading: item.reading for item in _PLAIN},
        tuple(tables),
        _left_out(run.results.left_out),
        f"{100 * run.results.record.judging.confidence:g}",
    )


def _plain(run: Source) -> Table:
    """A row a question, a column a method."""
    asked = [item for item in _PLAIN if run.methods(item.name)]
    methods = list(dict.fromkeys(method for item in asked for method in run.methods(item.name)))
    rows = []
    for item in asked:
        cells = [_percentage(run.cell(method, item.name), item.factor) for method in methods]
        rows.append(Row(item.heading, with_best(cells, item.better)))
    return Table("plain", "", "", "Percent", tuple(map(Column, methods)), tuple(rows))


def _percentage(cell: Cell, factor: float) -> Cell:
    """In whole percent, as people say it."""
    value, low, high = (
        None if number is None else float(round(factor * number)) for number in (cell.value, cell.low, cell.high)
    )
    return replace(cell, value=value, low=low, high=high, decimals=0)


def _left_out(items: Sequence[LeftOut]) -> tuple[MissingRow, ...]:
    found: dict[tuple[str, str], list[str]] = {}
    for item in items:
        found.setdefault((item.measure, item.reason), []).append(item.category or "all")
    return tuple(MissingRow(measure, _few(names), reason) for (measure, reason), names in found.items())


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
