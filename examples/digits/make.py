"""`python -m examples.digits.make OUT` writes the archive, its labels and boxes, the trained weights and audit.yaml."""

import argparse
import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from examples.digits.canvases import Canvases, Digits, draw, read_digits
from examples.digits.digits_model import classes
from examples.digits.files import write_dicom, write_png
from examples.digits.training import accuracy, train

_SEED = 20
_TEST_SHARE = 0.25
_EPOCHS = 12
_EXPECTED_ACCURACY = 0.95


def make(out: Path, *, images: int | None = None, epochs: int = _EPOCHS) -> float:
    """Write the example below `out`; returns the accuracy on the test split, in [0,1].

    `images` takes only so many of the 1797 digits, in a seeded order.
    """
    every = read_digits()
    order = np.random.default_rng(_SEED).permutation(len(every.values))
    digits = every.take(order[:images])
    test = np.arange(len(digits.values)) < round(_TEST_SHARE * len(digits.values))
    canvases = draw(digits, seed=_SEED)
    names = _write_archive(out / "archive", canvases)
    _write_tables(out, names, digits, canvases, test)
    print(f"{len(names)} canvases, {test.sum()} of them for the test, below {out / 'archive'}")
    module = train(digits.take(np.flatnonzero(~test)), epochs=epochs, seed=_SEED, say=print)
    torch.save(module.state_dict(), out / "weights.pt")
    here = Path(__file__).parent
    for name in ("digits_model.py", "audit.yaml"):
        shutil.copyfile(here / name, out / name)
    return accuracy(module, canvases.pixels[test], digits.take(np.flatnonzero(test)))


def _write_archive(folder: Path, canvases: Canvases) -> list[str]:
    """Every other canvas as DICOM, every fourth of those MONOCHROME1; returns the paths below the archive's root."""
    (folder / "dicom").mkdir(parents=True, exist_ok=True)
    (folder / "png").mkdir(exist_ok=True)
    names = []
    for number, canvas in enumerate(canvases.pixels):
        if number % 2 == 0:
            names.append(f"dicom/digit-{number:04d}.dcm")
            write_dicom(folder / names[-1], canvas, number=number, inverted=number % 8 == 0)
        else:
            names.append(f"png/digit-{number:04d}.png")
            write_png(folder / names[-1], canvas)
    return names


def _write_tables(out: Path, names: list[str], digits: Digits, canvases: Canvases, test: NDArray[np.bool_]) -> None:
    labels = [classes[value] for value in digits.values]
    splits = ["test" if held_out else "train" for held_out in test]
    _write_csv(out / "labels.csv", ("image", "label", "split"), zip(names, labels, splits, strict=True))
    boxes = ((name, label, *box.tolist()) for name, label, box in zip(names, labels, canvases.boxes, strict=True))
    _write_csv(out / "boxes.csv", ("image", "label", "x0", "y0", "x1", "y1"), boxes)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.digits.make", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--images", type=int, help="only so many of the 1797 digits")
    parser.add_argument("--epochs", type=int, default=_EPOCHS)
    arguments = parser.parse_args()
    reached = make(arguments.out, images=arguments.images, epochs=arguments.epochs)
    print(f"accuracy on the test split: {reached:.1%}")
    if arguments.images is None and reached < _EXPECTED_ACCURACY:
        raise SystemExit(f"expected at least {_EXPECTED_ACCURACY:.0%}: an audit of this classifier would mislead")
    print(f"next: lucency audit {arguments.out / 'audit.yaml'}")


if __name__ == "__main__":
    main()
