"""`python -m examples.phantom.make OUT --images N` writes a synthetic archive, its labels, boxes and configurations.

Nothing is kept in memory: files and rows are written as they are drawn, so N may be a million.
"""

import argparse
import csv
import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from examples.phantom.files import image_name, write_dicom
from examples.phantom.phantoms import phantoms
from examples.phantom.settings import FINDINGS, Confounder, Settings

_PART = 50  # images that a worker draws at once
_HEALTHY = "No Finding"
_COPIED = ("phantom_model.py", "study.yaml", "audit.yaml")
_SPLITS = (
    ("    file: labels.csv\n", "    file: labels.csv\n    split: split\n"),
    ("  test: 0.3\n", "  train: train\n  test: test\n"),
)
_CORNERS = ("x0", "y0", "x1", "y1")

Rows = list[tuple[Any, ...]]


def make(out: Path, settings: Settings, images: int, *, workers: int = 1) -> None:
    """Write the archive below `out`: the same files for any number of workers."""
    archive = out / "archive"
    for number in range(0, images, 1000):
        (archive / image_name(number)).parent.mkdir(parents=True, exist_ok=True)
    (out / "phantom.json").write_text(json.dumps({"synthetic": True, "images": images, **settings.to_json()}, indent=1))
    parts = ((archive, settings, start, min(start + _PART, images)) for start in range(0, images, _PART))
    columns = ("image", "label", "split") if settings.test else ("image", "label")
    with ExitStack() as stack:
        labels = _table(stack, out / "labels.csv", columns)
        boxes = _table(stack, out / "boxes.csv", ("image", "label", *_CORNERS))
        confounders = _table(stack, out / "confounders.csv", ("image", "kind", *_CORNERS))
        for labelled, boxed, confounded in _written(parts, workers):
            labels.writerows(row[: len(columns)] for row in labelled)
            boxes.writerows(boxed)
            confounders.writerows(confounded)
    for name in _COPIED:
        shutil.copyfile(Path(__file__).parent / name, out / name)
    if settings.test:  # a confounder agrees with its finding otherwise in each split: the study must not draw its own
        study = (out / "study.yaml").read_text(encoding="utf-8")
        for drawn, named in _SPLITS:
            study = study.replace(drawn, named)
        (out / "study.yaml").write_text(study, encoding="utf-8")


def write_part(archive: Path, settings: Settings, start: int, stop: int) -> tuple[Rows, Rows, Rows]:
    """Draw and write images `start` up to `stop`; returns the rows of labels.csv, boxes.csv and confounders.csv."""
    labels: Rows = []
    boxes: Rows = []
    confounders: Rows = []
    for phantom in phantoms(settings, start, stop):
        name = image_name(phantom.facts.number)
        write_dicom(archive / name, phantom, settings)
        labels.append((name, "|".join(phantom.facts.findings) or _HEALTHY, phantom.facts.split))
        boxes += [(name, finding, *box) for finding, box in phantom.boxes]
        if phantom.confounder is not None and settings.confounder is not None:
            confounders.append((name, settings.confounder.kind, *phantom.confounder))
    return labels, boxes, confounders


def _written(parts: Iterable[tuple[Path, Settings, int, int]], workers: int) -> Iterator[tuple[Rows, Rows, Rows]]:
    """In the order of the images; at most two parts a worker are under way."""
    if workers == 1:
        yield from (write_part(*part) for part in parts)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        under_way: deque[Future[tuple[Rows, Rows, Rows]]] = deque()
        for part in parts:
            under_way.append(pool.submit(write_part, *part))
            if len(under_way) >= 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _table(stack: ExitStack, path: Path, columns: tuple[str, ...]) -> Any:
    writer = csv.writer(stack.enter_context(path.open("w", newline="", encoding="utf-8")), lineterminator="\n")
    writer.writerow(columns)
    return writer


def _parsed(arguments: argparse.Namespace) -> Settings:
    confounder = None
    if arguments.confounder is not None:
        train, test = arguments.agreement
        confounder = Confounder(arguments.confounder, arguments.confounded, train, test)
    return Settings.imbalanced(
        arguments.imbalance,
        seed=arguments.seed,
        side=arguments.side,
        contrast=tuple(arguments.contrast),
        confounder=confounder,
        test=arguments.test,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.phantom.make", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--imbalance", type=float, default=10.0, help="images without a finding for each with it")
    parser.add_argument("--side", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--contrast", type=float, nargs=2, default=(0.4, 1.0), metavar=("LEAST", "MOST"))
    parser.add_argument("--confounder", choices=("marker", "tube"), help="draw what is no finding but goes with one")
    parser.add_argument("--confounded", choices=FINDINGS, default="Nodule", help="the finding that it goes with")
    parser.add_argument(
        "--agreement",
        type=float,
        nargs=2,
        default=(0.9, 0.5),
        metavar=("TRAIN", "TEST"),
        help="share of the images on which the confounder is there just where the finding is",
    )
    parser.add_argument("--test", type=float, default=0.0, help="share of patients in the split test; 0: no splits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    arguments = parser.parse_args()
    try:
        settings = _parsed(arguments)
    except ValueError as error:
        parser.error(str(error))
    make(arguments.out, settings, arguments.images, workers=arguments.workers)
    print(f"{arguments.images} synthetic images below {arguments.out / 'archive'}")
    print(f"next: lucency study-imbalance {arguments.out / 'study.yaml'}")


if __name__ == "__main__":
    main()
