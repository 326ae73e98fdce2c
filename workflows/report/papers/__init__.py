"""The tables that the methods' papers print, of the runs at hand."""

from collections.abc import Sequence
from dataclasses import replace

from storage.objects import Objects
from workflows.report.papers import glas, ifa, imbalance, m_cam
from workflows.report.papers.latex import as_latex
from workflows.report.papers.source import Source
from workflows.report.papers.spreadsheet import as_csv
from workflows.report.papers.table import Table
from workflows.report.papers.text import as_text


def paper_tables(runs: Sequence[Source]) -> tuple[Table, ...]:
    """All thirteen, in the papers' order; one without a number says what would fill it."""
    tables = (
        ifa.consistency(runs),
        ifa.accuracy(runs),
        ifa.selected_consistency(runs),
        ifa.selected_drop(runs),
        *m_cam.judged(runs),
        imbalance.alignment(runs),
        imbalance.concepts(runs),
        glas.search_points(runs),
        glas.methods(runs),
        glas.iterations(runs),
    )
    level = " and ".join(sorted({f"{100 * run.results.record.judging.confidence:g}" for run in runs}))
    return tuple(_with_interval(table, level) for table in tables)


def _with_interval(table: Table, level: str) -> Table:
    if any(cell.ends for row in table.rows for cell in row.cells):
        return replace(table, notes=(f"Intervals: {level} %, by bootstrap over patients.", *table.notes))
    return table


def write_tables(run: Objects, tables: Sequence[Table]) -> None:
    """`tables/NAME.txt`, `.csv` and `.tex` in the run's folder."""
    for table in tables:
        for ending, content in (("txt", as_text(table)), ("csv", as_csv(table)), ("tex", as_latex(table))):
            run.put(f"tables/{table.name}.{ending}", content.encode())
