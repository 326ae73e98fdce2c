"""Every method has a page with its name, its cost and a picture, and the overview lists the methods that there are."""

import re
from pathlib import Path

import pytest

from tasks.cams.names import BASE_METHODS

_METHODS = Path(__file__).parents[2] / "docs" / "methods"
_OVERVIEW = (_METHODS / "README.md").read_text(encoding="utf-8")


def _page_of(method: str) -> Path:
    """The three maps of one look share a page."""
    return _METHODS / ("glas.md" if method.startswith("glas") else f"{method}.md")


def test_the_overview_lists_each_method_once_in_their_order_with_its_page() -> None:
    listed = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\) \|", _OVERVIEW, re.MULTILINE)
    assert listed == [(method, _page_of(method).name) for method in BASE_METHODS]


@pytest.mark.parametrize("method", BASE_METHODS)
def test_a_page_names_its_method_and_says_what_it_costs(method: str) -> None:
    text = _page_of(method).read_text(encoding="utf-8")
    assert f"`{method}`" in text
    (cost,) = re.findall(r"^\*\*Cost\.\*\* (.*)$", text, re.MULTILINE)
    assert "forwards" in cost


@pytest.mark.parametrize("method", BASE_METHODS)
def test_a_page_shows_a_picture_of_its_method(method: str) -> None:
    page = _page_of(method)
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert f"../images/methods/{method}.png" in shown
    assert all((page.parent / target).is_file() for target in shown)


def test_no_page_is_of_a_method_that_is_gone() -> None:
    pages = {path.name for path in _METHODS.glob("*.md")}
    assert pages == {"README.md", *(_page_of(method).name for method in BASE_METHODS)}


def test_no_picture_is_left_over_and_together_they_stay_small() -> None:
    pictures = [*(_METHODS.parent / "images" / "methods").iterdir()]
    assert {path.stem for path in pictures} == {*BASE_METHODS, "photographs", "radiograph", "digits"}
    assert sum(path.stat().st_size for path in pictures) < 2_500_000
