"""A table for a terminal: as wide as that is, and whole: columns that do not fit come below in blocks of their own."""

import io
import textwrap
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from workflows.report.papers.table import Cell, Column, Table

_GAP = 2  # between columns, of which the box draws one
_NARROWEST = 8  # of the rows' names


def as_text(table: Table, width: int = 80) -> str:
    """The table with its caption, at most `width` wide (and no narrower than its widest number needs)."""
    if not table.filled:
        return _wrapped(f"{table.title}. {table.missing}", width) + "\n"
    cells = {id(cell): _lines(cell, table) for row in table.rows for cell in row.cells}
    parts = [_wrapped(table.title, width), "", _wrapped(table.caption, width), ""]
    names = max(cell_len(name) for name in (table.stub, *(row.name for row in table.rows)))
    names = max(_NARROWEST, min(names, width // 3))
    for block in _blocks(table, cells, width - names):
        if table.columns[block[0]].group:
            parts.append(_wrapped(f"{table.columns[block[0]].group}:", width))
        drawn = Drawn(box=SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        drawn.add_column(Text(table.stub), overflow="fold", max_width=names)
        for place in block:
            narrowest = _width(table, cells, place)
            drawn.add_column(Text(table.columns[place].name), justify="right", overflow="fold", min_width=narrowest)
        for row in table.rows:
            drawn.add_row(Text(row.name), *(Text("\n".join(cells[id(row.cells[place])])) for place in block))
        taken = names + sum(_GAP + _width(table, cells, place) for place in block)
        parts += [_drawn(drawn, taken), ""]
    parts += [_wrapped(line, width) for line in _below(table)]
    return "\n".join(parts).rstrip() + "\n"


def _lines(cell: Cell, table: Table) -> list[str]:
    """What stands in a cell: the number, its interval, and how many are behind it where that differs."""
    if cell.value is None:
        return [f"- [{table.reasons.index(cell.why) + 1}]"]
    lines = [f"{cell.shown}{' ' + cell.mark if cell.mark else ''}{'*' if cell.best else ''}"]
    if cell.ends is not None:
        lines.append(f"[{', '.join(cell.ends)}]")
    if cell.n is not None and table.n is None:
        lines.append(f"n {cell.n:,}")
    return lines


def _width(table: Table, cells: dict[int, list[str]], place: int) -> int:
    """Of a column: its numbers stay whole, its heading breaks between words."""
    words = table.columns[place].name.split()
    lines = [line for row in table.rows for line in cells[id(row.cells[place])]]
    return max(map(cell_len, [*words, *lines]))


def _blocks(table: Table, cells: dict[int, list[str]], width: int) -> Iterator[list[int]]:
    """Columns of one group that fit beside each other."""
    block: list[int] = []
    taken = 0
    for place, column in enumerate(table.columns):
        needed = _width(table, cells, place) + _GAP
        if block and (taken + needed > width or not _together(table.columns, block, column)):
            yield block
            block, taken = [], 0
        block.append(place)
        taken += needed
    yield block


def _together(columns: Sequence[Column], block: list[int], column: Column) -> bool:
    return columns[block[0]].group == column.group


def _below(table: Table) -> list[str]:
    lines = [f"[{k}] {reason}" for k, reason in enumerate(table.reasons, 1)]
    if table.n is not None:
        lines.append(f"n = {table.n:,} throughout.")
    if table.starred:
        lines.append("* the best of those compared; where intervals overlap, the order may be chance.")
    return [*lines, *table.notes]


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _drawn(drawn: Drawn, width: int) -> str:
    sink = io.StringIO()
    console = Console(file=sink, width=width, color_system=None, force_terminal=False, emoji=False, highlight=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines())
