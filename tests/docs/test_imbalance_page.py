"""The page of the study on synthetic radiographs: it shows what the study left, and says what it is of."""

import csv

import pytest

from docs.make_imbalance import FIGURES, FOUND, PAGE, TABLES, TOOK
from docs.tables_on_pages import between_marks, block


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_the_table_that_lies_beside_it(name: str) -> None:
    assert between_marks(PAGE, name) == block(FIGURES, name)


@pytest.mark.parametrize("name", TABLES)
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


def test_the_page_says_what_was_found_how_long_it_took_and_that_it_is_synthetic() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert between_marks(PAGE, FOUND).count("\n- ") >= 2
    assert "minutes on 2 CPU cores" in between_marks(PAGE, TOOK)
    assert "synthetic" in text.lower()
    assert "PLACE" not in text
