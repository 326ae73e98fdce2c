"""Tables of runs on pages of the docs: their files beside the page, their text between marks on it."""

import shutil
from pathlib import Path


def put_table(page: Path, figures: Path, name: str, folder: Path) -> None:
    """Copy a table's files from `folder` to `figures`, and its text onto the page, between its marks."""
    figures.mkdir(exist_ok=True)
    for ending in ("csv", "txt"):
        shutil.copyfile(folder / f"{name}.{ending}", figures / f"{name}.{ending}")
    put_text(page, name, block(figures, name))


def put_text(page: Path, name: str, text: str) -> None:
    begin, end = marks(name)
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}{text}{end}{rest.split(end)[1]}", encoding="utf-8")


def between_marks(page: Path, name: str) -> str:
    """What the page has there now."""
    begin, end = marks(name)
    return page.read_text(encoding="utf-8").split(begin)[1].split(end)[0]


def block(figures: Path, name: str) -> str:
    """A table as it stands between its marks."""
    table = (figures / f"{name}.txt").read_text(encoding="utf-8").strip("\n")
    return f"\n```text\n{table}\n```\n\n"


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a table on the page."""
    return f"<!-- {name}: written by the script that makes this page -->\n", f"<!-- end of {name} -->\n"
