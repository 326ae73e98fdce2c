"""A table as CSV: plain numbers in full precision, and nothing that a spreadsheet would run."""

import csv
import io

from workflows.report.papers.table import Cell, Table

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_PARTS = ("", " low", " high", " n", " mark", " why empty")


def as_csv(table: Table) -> str:
    """One row a row; behind each column its interval, count, mark and reason, where the column has any."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    names = [f"{column.group}: {column.name}" if column.group else column.name for column in table.columns]
    parts = [[_parts(row.cells[place]) for row in table.rows] for place in range(len(names))]
    kept = [
        [k for k in range(len(_PARTS)) if k == 0 or any(cell[k] not in ("", None) for cell in column)]
        for column in parts
    ]
    writer.writerow([_text(table.stub), *(_text(names[p] + _PARTS[k]) for p in range(len(names)) for k in kept[p])])
    for place, row in enumerate(table.rows):
        writer.writerow([_text(row.name), *(parts[p][place][k] for p in range(len(names)) for k in kept[p])])
    return sink.getvalue()


def _parts(cell: Cell) -> tuple[float | int | str | None, ...]:
    return (cell.value, cell.low, cell.high, cell.n, cell.mark, _text(cell.why))


def _text(text: str) -> str:
    """A spreadsheet takes text that begins like a formula for one."""
    return f"'{text}" if text.startswith(_FORMULA) else text
