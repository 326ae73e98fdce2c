"""Audits the digits test-bed for the papers' tables and puts them into the docs: `python -m docs.make_tables OUT`.

OUT gets the archive, the audits and their tables; what is there already is not made again. docs/explanation/digits/
gets the tables as CSV and text, and the page digits-tables.md shows them. The digits are real handwriting on synthetic
canvases.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from docs.tables_on_pages import put_table
from examples.digits.make import make

_DOCS = Path(__file__).parent
PAGE = _DOCS / "explanation" / "digits-tables.md"
FIGURES = _DOCS / "explanation" / "digits"
_POINTS = (15, 6, 9, 12, 22)  # search points a side; of the first all methods are audited
_FAMILY = ("grad-cam", "pixel-grad-cam", "grad-cam++", "xgrad-cam")
_COMPARED = ("eigen-cam", "eigen-grad-cam", "ablation-cam", "m-cam")
_ANSWERS = ("gradient", "occlusion", "grad-cam", "lime", "rise", "meaningful-perturbation", "glas-light", "glas-shadow")


def audits() -> dict[str, dict[str, Any]]:
    """Name -> configuration. The canvases' boxes cover 10 to 22 percent of the image: small is below 15 here.

    Methods that ask the network thousands of times for a map get the first 60 canvases of the split.
    """
    family = [f"{kind}{base}" for base in _FAMILY for kind in ("", "s-", "fs-", "fs-s-")]
    found = {
        "digits": _audit(
            "Digits",
            {"methods": [*family, *_COMPARED], "features": {"share": 0.2}},
            {"include": _EVERY, "perturbed_images": 100_000},
        )
    }
    for points in _POINTS:
        methods = [*_ANSWERS, "glas", "rglas"] if points == _POINTS[0] else ["glas"]
        found[f"glas-{points}"] = _audit(
            f"Digits, {points} x {points}",
            {"methods": methods, "glas": {"points": points}, "map": "input"},
            {
                "include": ["drop", "inverse", "alignment", "pointing", "iou"],
                "sanity": {"checks": ["repeated"], "images": 4},
            },
            "**/digit-00[0-5]*",
            shard=8,
        )
    return found


_EVERY = [
    "drop", "inverse", "alignment", "pointing", "iou", "features", "concepts", "performance", "infidelity",
    "sensitivity", "curves",
]  # fmt: skip


def _audit(
    title: str, explain: dict[str, Any], measures: dict[str, Any], images: str = "**", shard: int = 64
) -> dict[str, Any]:
    return {
        "archive": {
            "location": "archive",
            "include": [images],
            "labels": {"file": "labels.csv", "split": "split"},
            "boxes": {"file": "boxes.csv"},
            "split": "test",
            "key": {"file": "key"},  # fixed, so that samples and noise are the same whenever the tables are made
        },
        "model": {"source": "python:digits_model.factory", "weights": "weights.pt"},
        "explain": explain,
        "measures": {"small": 0.15, **measures},
        "engine": {"shard_images": shard},
        "mlflow": {"enabled": False},
        "report": {"title": title},
    }


def run(out: Path) -> None:
    """Make the digits, the audits, and the tables of both groups of audits."""
    if not (out / "weights.pt").exists():
        make(out)
    (out / "key").write_bytes(b"the tables of the documentation")
    for name, tree in audits().items():
        path = out / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"run": name, **tree}))
        _lucency(out, "audit", path.name)
    for names in (["digits"], [f"glas-{points}" for points in _POINTS]):
        _lucency(out, "report", *names, "--tables")


def _lucency(out: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "workflows.cli", *arguments], cwd=out, check=True)


def tables_of(out: Path) -> dict[str, Path]:
    """Name -> folder of the run whose tables have it."""
    first = out / "digits" / "tables"
    return {
        path.stem: (out / f"glas-{_POINTS[0]}" / "tables" if path.stem.startswith("glas") else first)
        for path in sorted(first.glob("*.txt"))
    }


def write(out: Path) -> None:
    """Put the tables into the page, between the marks of each."""
    for name, folder in tables_of(out).items():
        put_table(PAGE, FIGURES, name, folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make_tables", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into, or that an earlier call has written")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run(out)
    write(out)


if __name__ == "__main__":
    main()
