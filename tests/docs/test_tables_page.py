"""The page of the papers' tables: all thirteen are there, filled, and are those of the files beside it."""

import csv
import re

import pytest

from docs.make_tables import FIGURES, PAGE, audits
from docs.tables_on_pages import between_marks, block, marks
from workflows.configuration import check
from workflows.report.papers import paper_tables

_NAMES = [table.name for table in paper_tables([])]


def test_there_are_thirteen_tables() -> None:
    assert len(_NAMES) == 13
    assert {path.stem for path in FIGURES.glob("*.csv")} == set(_NAMES)


@pytest.mark.parametrize("name", _NAMES)
def test_the_page_shows_the_table_that_lies_beside_it(name: str) -> None:
    assert between_marks(PAGE, name) == block(FIGURES, name)


@pytest.mark.parametrize("name", _NAMES)
def test_no_number_of_a_table_is_missing(name: str) -> None:
    with (FIGURES / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = [
        value
        for row in rows
        for column, value in list(row.items())[1:]
        if not column.endswith((" low", " high", " n", " mark"))
    ]
    assert values
    assert all(value and float(value) == float(value) for value in values)


@pytest.mark.parametrize("name", _NAMES)
def test_two_sentences_say_what_a_table_tells(name: str) -> None:
    before = PAGE.read_text(encoding="utf-8").split(marks(name)[0])[0].rpartition("###")[2]
    text = " ".join(before.split("\n")[1:])
    assert len(re.findall(r"[.!](?:\s|$)", text)) >= 2
    assert "PLACE" not in text


def test_what_was_audited_is_a_configuration_of_today() -> None:
    for name, tree in audits().items():
        check({"run": name, **tree})
