"""Copies a study's figures into the documentation: `python -m docs.make_study OUT`, OUT as the study left it.

docs/explanation/co-occurrence/ gets the figures of every seed, docs/images/ the picture, and the page its tables.
"""

import argparse
import shutil
from pathlib import Path

from examples.co_occurrence.tables import markdown, read_csv

_DOCS = Path(__file__).parent
PAGE = _DOCS / "explanation" / "co-occurrence.md"
FIGURES = _DOCS / "explanation" / "co-occurrence"
PICTURE = _DOCS / "images" / "co_occurrence.png"
_BEGIN, _END = "<!-- tables: written by docs.make_study -->\n", "<!-- end of tables -->\n"


def tables() -> str:
    """What the page has to show of the figures that are kept."""
    return markdown(read_csv(FIGURES / "maps.csv"), read_csv(FIGURES / "classifiers.csv"))


def shown() -> str:
    """The tables on the page."""
    return PAGE.read_text(encoding="utf-8").split(_BEGIN)[1].split(_END)[0].strip("\n") + "\n"


def write(out: Path) -> None:
    FIGURES.mkdir(exist_ok=True)
    for name in ("maps.csv", "classifiers.csv"):
        shutil.copyfile(out / name, FIGURES / name)
    shutil.copyfile(out / "maps.png", PICTURE)
    before, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    PAGE.write_text(f"{before}{_BEGIN}\n{tables()}\n{_END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make_study", description=__doc__)
    parser.add_argument("out", type=Path, help="folder that the study wrote")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
