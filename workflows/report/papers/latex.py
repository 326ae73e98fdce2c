"""A table for a paper: LaTeX with booktabs, whatever the names in it contain."""

from collections.abc import Iterator, Sequence

from workflows.report.papers.table import Cell, Column, Row, Table, spans

_COLUMNS = 4  # beside each other on a page
_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedbl{}",
    # Behind the end of a row these two would be read as its arguments.
    "[": "{[}",
    "*": "{*}",
    "`": "\\textasciigrave{}",
    "\N{EN DASH}": "--",
    "\N{MULTIPLICATION SIGN}": "$\\times$",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}


def escaped(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def as_latex(table: Table) -> str:
    """A `table` environment to be put into a document that loads booktabs."""
    if not table.filled:
        return f"% {table.title}. {table.missing}\n"
    lines = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}"]
    body = [
        "\\begin{table}",
        "\\centering\\footnotesize",
        f"\\caption{{{escaped(table.title)}. {escaped(table.caption)}}}",
        f"\\label{{tab:{table.name}}}",
    ]
    for first in range(0, len(table.columns), _COLUMNS):
        body += _tabular(table, slice(first, first + _COLUMNS))
    below = [f"\\textsuperscript{{{k}}} {escaped(reason)}" for k, reason in enumerate(table.reasons, 1)]
    if table.n is not None:
        below.append(f"$n$ = {table.n:,} throughout.")
    if table.starred:
        below.append("Bold: the best of those compared; where intervals overlap, the order may be chance.")
    below += [escaped(note) for note in table.notes]
    if below:
        body += [
            "",
            "\\medskip",
            "\\begin{minipage}{\\linewidth}\\footnotesize",
            *_paragraphs(below),
            "\\end{minipage}",
        ]
    body.append("\\end{table}")
    if not "".join(body).isascii():
        lines.append("% holds characters that need LuaLaTeX or XeLaTeX and a font that has them")
    return "\n".join([*lines, *body]) + "\n"


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in (text, "")][:-1]


def _tabular(table: Table, part: slice) -> list[str]:
    columns = table.columns[part]
    lines = [f"\\begin{{tabular}}{{p{{.24\\linewidth}}{'r' * len(columns)}}}", "\\toprule"]
    if any(column.group for column in columns):
        lines += _groups(columns)
    names = [table.stub, *(column.name for column in columns)]
    lines += [" & ".join(map(escaped, names)) + " \\\\", "\\midrule"]
    for row in table.rows:
        lines += [f"{name} & {' & '.join(cells)} \\\\" for name, cells in _rows(table, row, part)]
    return [*lines, "\\bottomrule", "\\end{tabular}", "", "\\smallskip"]


def _rows(table: Table, row: Row, part: slice) -> Iterator[tuple[str, list[str]]]:
    """The numbers, and below them, where there are any, their intervals and counts."""
    cells = row.cells[part]
    yield f"\\raggedright {escaped(row.name)}", [_cell(cell, table) for cell in cells]
    intervals = [f"{{[}}{', '.join(map(_number, cell.ends))}]" if cell.ends else "" for cell in cells]
    counts = ["" if cell.n is None or table.n is not None else f"$n$ = {cell.n:,}" for cell in cells]
    for texts in (intervals, counts):
        if any(texts):
            yield "", [f"\\scriptsize {text}" if text else "" for text in texts]


def _groups(columns: Sequence[Column]) -> list[str]:
    headings, rules, place = [""], [], 2
    for name, count in spans(columns):
        headings.append(f"\\multicolumn{{{count}}}{{c}}{{{escaped(name)}}}")
        rules.append(f"\\cmidrule(lr){{{place}-{place + count - 1}}}")
        place += count
    return [" & ".join(headings) + " \\\\", "".join(rules)]


def _cell(cell: Cell, table: Table) -> str:
    if cell.value is None:
        return f"--\\textsuperscript{{{table.reasons.index(cell.why) + 1}}}"
    text = _number(cell.shown)
    if cell.best:
        text = f"\\textbf{{\\boldmath {text}}}"
    if cell.mark:
        text += f"\\textsuperscript{{{escaped(cell.mark)}}}"
    return text


def _number(words: str) -> str:
    digits, _, exponent = words.partition("e")
    return f"${digits} \\times 10^{{{int(exponent)}}}$" if exponent else f"${digits}$"
