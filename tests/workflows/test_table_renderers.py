"""A table as text, CSV and LaTeX: whole, with every number, and safe whatever the names in it are."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from storage.objects import Objects
from tests.workflows.synthetic_run import Recipe, make_run
from workflows.cli import main
from workflows.report import build_report
from workflows.report.measures_page import measures_page
from workflows.report.papers import paper_tables
from workflows.report.papers.latex import as_latex, escaped
from workflows.report.papers.source import sources
from workflows.report.papers.spreadsheet import as_csv
from workflows.report.papers.table import Cell, Column, Row, Table, spans, with_best
from workflows.report.papers.text import as_text

_HOSTILE = r"[*]% \end{table} & $x_1^2$ #{~} <b> \input{/etc/passwd}"


def _table(*cells: Cell, name: str = "Row", columns: int | None = None, group: str = "") -> Table:
    names = [f"column-{place}" for place in range(columns or len(cells))]
    return Table(
        "ifa-1", "A title", "A caption.", "Dataset", tuple(Column(n, group) for n in names), (Row(name, cells),)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return make_run(str(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("width", [40, 80, 132])
def test_text_is_no_wider_than_the_terminal_and_holds_every_number(width: int) -> None:
    cells = tuple(Cell(k + 0.5, k + 0.25, k + 0.75, n=100 + k) for k in range(30))
    text = as_text(_table(*cells, name="A dataset with a name that is rather longer than its place"), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for cell in cells:
        assert f" {cell.shown}" in text
        assert f"[{cell.low:.3f}, {cell.high:.3f}]" in text
        assert f"n {cell.n}" in text
    assert "…" not in text


def test_every_block_of_columns_repeats_the_rows_names() -> None:
    text = as_text(_table(*(Cell(float(k)) for k in range(20)), name="Digits"), 80)
    assert text.count("Digits") == text.count("Dataset") > 1
    assert [f"column-{k}" in text for k in range(20)] == [True] * 20


def test_a_terminal_too_narrow_for_one_number_still_gets_it_whole() -> None:
    assert "[1000000.000, 3000000.000]" in as_text(_table(Cell(2e6, 1e6, 3e6)), 20)


def test_wide_scripts_take_the_room_that_they_take() -> None:
    text = as_text(_table(*(Cell(float(k)) for k in range(9)), name="胸部エックス線画像の監査結果" * 3), 60)
    assert max(map(cell_len, text.splitlines())) <= 60
    assert "".join(re.findall(r"[^\x00-\x7f─]", text)).count("監") >= 3


def test_columns_of_another_group_stand_under_its_heading() -> None:
    table = Table(
        "glas-3",
        "T",
        "C",
        "Loss",
        (Column("IoBB", "multi-label"), Column("IoR", "multi-label"), Column("IoBB", "binary")),
        (Row("BCE", (Cell(0.1), Cell(0.2), Cell(0.3))),),
    )
    text = as_text(table, 80)
    assert text.index("multi-label:") < text.index("0.200") < text.index("binary:") < text.index("0.300")
    assert spans(table.columns) == [("multi-label", 2), ("binary", 1)]
    assert r"\multicolumn{2}{c}{multi-label}" in as_latex(table)
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in as_latex(table)
    assert as_csv(table).splitlines()[0] == "Loss,multi-label: IoBB,multi-label: IoR,binary: IoBB"


def test_a_dash_has_a_footnote_and_equal_reasons_share_one() -> None:
    table = _table(Cell(1.0), Cell(why="no boxes"), Cell(why="no labels"), Cell(why="no boxes"))
    text = as_text(table, 80)
    assert re.search(r"1\.000 +- \[1\] +- \[2\] +- \[1\]", text)
    assert "[1] no boxes\n[2] no labels\n" in text
    assert r"--\textsuperscript{2}" in as_latex(table)
    assert r"\textsuperscript{2} no labels" in as_latex(table)
    assert as_csv(table).splitlines()[1] == "Row,1.0,,no boxes,,no labels,,no boxes"


def test_a_count_that_all_share_is_said_once() -> None:
    same, other = _table(Cell(1.0, n=1200), Cell(2.0, n=1200)), _table(Cell(1.0, n=1200), Cell(2.0, n=7))
    assert as_text(same).count("1,200") == 1
    assert "n = 1,200 throughout." in as_text(same)
    assert "throughout" not in as_text(other)
    assert "$n$ = 7" in as_latex(other)
    assert "$n$ = 7" not in as_latex(same)


def test_the_best_is_starred_in_text_and_bold_in_latex() -> None:
    table = _table(*with_best([Cell(1.0, mark="p"), Cell(2.0)], "lower"))
    assert "1.000 p*" in as_text(table)
    assert r"\textbf{\boldmath $1.000$}\textsuperscript{p} & $2.000$" in as_latex(table)


def test_csv_has_full_precision_and_separate_columns_for_interval_and_count() -> None:
    third = 1 / 3
    read = list(csv.DictReader(io.StringIO(as_csv(_table(Cell(third, 0.1, 2 * third, n=9), Cell(1e-12))))))
    assert list(read[0]) == ["Dataset", "column-0", "column-0 low", "column-0 high", "column-0 n", "column-1"]
    assert [float(value) for value in list(read[0].values())[1:]] == [third, 0.1, 2 * third, 9, 1e-12]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://example.org";"x")'])
def test_no_name_becomes_a_formula_and_no_number_becomes_text(name: str) -> None:
    table = Table("ifa-1", "T", "C", name, (Column(name),), (Row(name, (Cell(-0.5),)),))
    rows = list(csv.reader(io.StringIO(as_csv(table))))
    assert rows == [[f"'{name}", f"'{name}"], [f"'{name}", "-0.5"]]


def test_latex_prints_every_special_character_and_obeys_none() -> None:
    assert escaped(_HOSTILE) == (
        r"{[}{*}]\% \textbackslash{}end\{table\} \& \$x\_1\textasciicircum{}2\$ \#\{\textasciitilde{}\} "
        r"\textless{}b\textgreater{} \textbackslash{}input\{/etc/passwd\}"
    )
    text = as_latex(_table(Cell(1.0), name=_HOSTILE))
    assert text.count(r"\end{table}") == 1
    assert r"\input" not in text.replace(r"\textbackslash{}input", "")


def test_latex_closes_what_it_opens_and_fills_every_column(run: Objects) -> None:
    for table in paper_tables(sources([run])):
        text = as_latex(table)
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}")
        opened, closed = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
        assert sorted(opened) == sorted(closed)
        for body in re.findall(r"\\begin{tabular}(.*?)\\end{tabular}", text, re.DOTALL):
            columns = re.match(r"{p{[^}]*}(r+)}", body)
            assert columns is not None
            rows = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
            assert {len(re.split(r"(?<!\\)&", line)) for line in rows} == {1 + len(columns[1])}


def test_a_small_number_is_a_power_of_ten_in_latex() -> None:
    assert r"$-1.2 \times 10^{-5}$" in as_latex(_table(Cell(-1.2e-5)))


def test_latex_warns_of_characters_that_plain_latex_lacks() -> None:
    assert "LuaLaTeX" in as_latex(_table(Cell(1.0), name="胸部"))
    assert "LuaLaTeX" not in as_latex(_table(Cell(1.0)))


def test_a_table_without_numbers_is_one_line_everywhere() -> None:
    table = Table("ifa-1", "A title", "A caption.", "Dataset", missing="Needs boxes.")
    assert as_text(table) == "A title. Needs boxes.\n"
    assert as_latex(table) == "% A title. Needs boxes.\n"
    assert as_csv(table) == "Dataset\n"


def test_the_report_tells_in_plain_words_how_far_maps_can_be_trusted(run: Objects) -> None:
    html = build_report(run)
    section = html[html.index('<section id="measures"') : html.index('<section id="archive"')]
    plain = section[: section.index("<details>")]
    assert "Points at the finding" in plain
    assert plain.count("More is better.") == 4
    assert plain.count("Less is better.") == 1
    assert "every labelled image has this class, or none has" in section
    assert section.count("<h3>") == 13


def test_the_plain_table_is_in_whole_percent(run: Objects) -> None:
    source = sources([run])[0]
    plain = measures_page(source, ()).plain
    for row, measure, factor in ((0, "pointing game", 100), (4, "average drop", 1)):
        for column, cell in zip(plain.columns, plain.rows[row].cells, strict=True):
            metric = source.results.find(column.name, "(all)", measure)
            assert metric is not None
            assert metric.low is not None
            assert (cell.value, cell.low) == (round(factor * metric.value), round(factor * metric.low))


def test_without_measures_the_report_says_that_nothing_was_tried(tmp_path: Path) -> None:
    html = build_report(make_run(str(tmp_path), Recipe(groups=(), boxes=False)))
    assert "no explanation was tried" in html
    assert "Tables that this run does not fill" in html


def test_names_in_the_tables_are_text_in_the_report(tmp_path: Path) -> None:
    html = build_report(make_run(str(tmp_path), Recipe(title="<script>alert(1)</script>")))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, within a class" in html


def _report(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["report", *arguments], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_and_writes_the_tables_of_several_runs(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    make_run(first, Recipe(title="Before"))
    make_run(second, Recipe(title="After", points=12))
    printed = _report(first, second, "--tables")
    assert "12 x 12" in printed
    assert re.search(r"^After +", printed, re.MULTILINE)
    files = sorted(path.name for path in (tmp_path / "a" / "tables").iterdir())
    assert len(files) == 39
    assert {path.rpartition(".")[2] for path in files} == {"txt", "csv", "tex"}
    assert (tmp_path / "a" / "tables" / "glas-1.txt").read_text() in printed
    assert not (tmp_path / "b" / "tables").exists()
    assert "12 x 12" in (tmp_path / "a" / "report.html").read_text()
    _report(first)
    assert "12 x 12" not in (tmp_path / "a" / "report.html").read_text()


def test_the_command_gives_the_tables_as_json(tmp_path: Path) -> None:
    make_run(str(tmp_path))
    answer = json.loads(_report(str(tmp_path), "--tables", "--json"))
    tables = {table["name"]: table for table in answer["tables"]}
    assert len(tables) == 13
    assert tables["glas-1"]["rows"][2]["cells"][0]["value"] == 451
    assert "tables" not in json.loads(_report(str(tmp_path), "--json"))


def test_several_runs_without_tables_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(str(tmp_path / name))
    done = CliRunner().invoke(main, ["report", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == 2
    assert "--tables" in done.stderr


def test_tables_name_no_path_and_nothing_private(tmp_path: Path) -> None:
    runs = [str(tmp_path / "DOE" / name) for name in ("a", "b")]
    for run in runs:
        make_run(run)
    printed = _report(*runs, "--tables")
    assert "Synthetic chest audit (a)" in printed
    assert str(tmp_path) not in printed[: printed.rindex("Report: ")]
    written = "".join(path.read_text() for path in (tmp_path / "DOE" / "a" / "tables").iterdir())
    assert "DOE" not in written
    assert "secret" not in written
