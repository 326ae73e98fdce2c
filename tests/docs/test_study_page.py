"""The page of the study shows the figures that are kept beside it, and no others."""

import re

from docs import make_study
from docs.make_study import FIGURES, PAGE, PICTURE
from examples.co_occurrence.chain import METHODS_SHOWN
from examples.co_occurrence.tables import read_csv


def test_the_tables_on_the_page_are_those_of_the_figures() -> None:
    assert make_study.shown() == make_study.tables(), "run `python -m docs.make_study OUT`"


def test_the_figures_are_of_every_seed_from_the_first_on_and_of_every_method() -> None:
    found = {(int(row["seed"]), row["method"]) for row in read_csv(FIGURES / "maps.csv")}
    seeds = len(found) // len(METHODS_SHOWN)
    assert seeds > 1
    assert found == {(seed, method) for seed in range(seeds) for method in METHODS_SHOWN}


def test_the_page_shows_its_picture() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert [(PAGE.parent / target).resolve() for target in shown] == [PICTURE]


def test_another_study_takes_the_place_of_the_tables_and_leaves_the_words(tmp_path, monkeypatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    out, figures = tmp_path / "out", tmp_path / "figures"
    out.mkdir()
    for name in ("maps.csv", "classifiers.csv"):
        lines = (FIGURES / name).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.startswith(("seed", "0,", "1,"))]
        (out / name).write_text("".join(kept), encoding="utf-8")
    (out / "maps.png").write_bytes(b"picture")
    for name, value in {"PAGE": page, "FIGURES": figures, "PICTURE": tmp_path / "picture.png"}.items():
        monkeypatch.setattr(make_study, name, value)
    make_study.write(out)
    assert "Means over 2 seeds" in page.read_text(encoding="utf-8")
    assert make_study.shown() == make_study.tables()
    words = [re.sub(r"<!-- tables.*<!-- end", "", one.read_text(encoding="utf-8"), flags=re.S) for one in (page, PAGE)]
    assert words[0] == words[1]
