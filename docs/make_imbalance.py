"""Makes a synthetic archive, runs the imbalance study on it, and puts its tables into the docs.

`python -m docs.make_imbalance OUT`. OUT gets the archive and the study; what is there already is not made again.
docs/explanation/imbalance/ gets the tables as CSV and text, and the page imbalance.md shows them, with what the study
found and how long it took.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from docs.tables_on_pages import put_table, put_text
from examples.phantom.make import make
from examples.phantom.settings import Settings

_DOCS = Path(__file__).parent
PAGE = _DOCS / "explanation" / "imbalance.md"
FIGURES = _DOCS / "explanation" / "imbalance"
TABLES = ("study-alignment", "study-concepts", "study-performance")
FOUND, TOOK = "what the study found", "what it took"
IMBALANCE = 10.0  # images without a finding for each with it
_IMAGES = 2000
_SEED = 1  # not the one by which the findings were made as hard as they are
_TIME = "minutes.json"


def run(out: Path) -> None:
    """Make the archive and the study."""
    if not (out / "phantom.json").exists():
        make(out, Settings.imbalanced(IMBALANCE, seed=_SEED), _IMAGES, workers=2)
        (out / "key").write_bytes(b"the study of the documentation")  # fixed, and with it every sample
    if not (out / _TIME).exists():
        if (out / "study").exists():
            raise SystemExit(f"{out / 'study'} was begun and interrupted: delete it, so that its minutes are its own")
        started = time.monotonic()
        command = ["-m", "workflows.cli", "study-imbalance", "study.yaml", "--set", "archive.key.file=key"]
        subprocess.run([sys.executable, *command], cwd=out, check=True)
        minutes = round((time.monotonic() - started) / 60, 1)
        (out / _TIME).write_text(json.dumps({"minutes": minutes, "cores": len(os.sched_getaffinity(0))}))


def write(out: Path) -> None:
    """Put the tables, the findings and the time into the page."""
    study = out / "study"
    for name in TABLES:
        put_table(PAGE, FIGURES, name, study / "tables")
    findings = json.loads((study / "findings.json").read_text(encoding="utf-8"))
    put_text(PAGE, FOUND, "\n" + "\n".join(f"- {item['sentence']}" for item in findings) + "\n\n")
    state = json.loads((study / "study.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{count:,} {part}" for part, count in state["counts"].items())
    time_ = json.loads((out / _TIME).read_text(encoding="utf-8"))
    took = f"{time_['minutes']} minutes on {time_['cores']} CPU cores, from the catalogue to the report."
    put_text(PAGE, TOOK, f"\n{counts}. {took}\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make_imbalance", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into, or that an earlier call has written")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run(out)
    write(out)


if __name__ == "__main__":
    main()
