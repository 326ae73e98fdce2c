"""`python -m examples.co_occurrence.study OUT` runs the whole study and writes its figures, tables and pictures.

The protocol is in docs/explanation/co-occurrence.md and was written before the figures were seen.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from examples.co_occurrence.chain import Outcome, Sizes, chain
from examples.co_occurrence.picture import write_picture
from examples.co_occurrence.tables import markdown, read_csv, write_csv

_SEEDS = 10


def study(out: Path, *, seeds: int = _SEEDS, sizes: Sizes | None = None, workers: int = 1) -> str:
    """Write maps.csv, classifiers.csv, tables.md and maps.png below `out`, anew after each seed; returns the tables.

    The figures do not depend on the number of workers. The picture has the first canvases of the first seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    tables = ""
    start = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for outcome in pool.map(partial(chain, sizes=sizes or Sizes()), range(seeds)):
            outcomes.append(outcome)
            tables = _write(out, outcomes)
            print(f"seed {len(outcomes)} of {seeds}, {time.monotonic() - start:.0f} s", flush=True)
    return tables


def _write(out: Path, outcomes: Sequence[Outcome]) -> str:
    maps = [row for outcome in outcomes for row in outcome.maps]
    answers = [row for outcome in outcomes for row in outcome.answers]
    write_csv(out / "maps.csv", maps)
    write_csv(out / "classifiers.csv", answers)
    write_picture(out / "maps.png", outcomes[0].shown)
    tables = markdown(read_csv(out / "maps.csv"), read_csv(out / "classifiers.csv"))  # as anyone can make them
    (out / "tables.md").write_text(tables, encoding="utf-8")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.co_occurrence.study", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--seeds", type=int, default=_SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    options = parser.parse_args()
    print(study(options.out, seeds=options.seeds, workers=options.workers))


if __name__ == "__main__":
    main()
