"""`python -m benchmarks.coarse_to_fine`: what a coarse first look saves GLAS, and what agreement it loses.

Real photographs and radiographs through EfficientNet-Lite0 with its ImageNet weights, the class with the largest logit.
Each choice of a coarse grid and a share is compared with the full grid of 15 x 15 points: forwards, Spearman's
correlation of the two maps over their cells, the overlap of the tenths of the cells where they are highest
(intersection over union), and the distance between their maxima in parts of the image's side.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from examples.real import make as real
from storage.decode import decode_image
from tasks.glas import Glas, fuse, look, look_closer
from workflows.configuration_file import load
from workflows.models import build_classifier, fetch_model

_IMAGES = (
    "scikit-image/coffee.png", "scikit-image/chelsea.png", "scikit-image/camera.png", "scikit-image/rocket.jpg",
    "scikit-image/motorcycle_left.png", "scikit-image/grass.png", "pydicom-data/RG1_UNCR.dcm",
    "pydicom-data/RG3_UNCR.dcm",
)  # fmt: skip
_CHOICES = ((3, 0.25), (5, 0.15), (5, 0.25), (5, 0.5))
_SIZE = (56, 56)
_TOP = 0.1
_STEP = 8


def agreement(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """Spearman's correlation, overlap of the highest tenths, and distance of the maxima, of two maps [H,W]."""
    first, second = one.flatten().double().numpy(), other.flatten().double().numpy()
    high = [values >= np.quantile(values, 1 - _TOP) for values in (first, second)]
    overlap = (high[0] & high[1]).sum() / (high[0] | high[1]).sum()
    places = [np.array(divmod(int(values.argmax()), _SIZE[1])) / _SIZE for values in (first, second)]
    return float(spearmanr(first, second).statistic), float(overlap), float(np.linalg.norm(places[0] - places[1]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coarse_to_fine", description=__doc__)
    parser.add_argument("--sigmas", type=float, nargs=3, default=(5.0, 3.0, 6.0), metavar=("LIGHT", "SHADOW", "SPREAD"))
    light, shadow, spatial = parser.parse_args().sigmas
    full = Glas(light=light, shadow=shadow, spatial=spatial)
    found: dict[tuple[int, float], list[tuple[float, float, float]]] = {choice: [] for choice in _CHOICES}
    with tempfile.TemporaryDirectory() as folder:
        real.make(Path(folder))
        classifier = build_classifier(fetch_model(load(Path(folder) / "audit.yaml").model, folder=folder), "cpu")
        dark = classifier.preprocess.dark

        def predict(inputs: Tensor) -> Tensor:
            with torch.no_grad():
                return classifier.probabilities(classifier.module(inputs.contiguous(memory_format=torch.channels_last)))

        for name in _IMAGES:
            payload = (Path(folder) / "archive" / name).read_bytes()
            kind = {".dcm": "dicom", ".png": "png", ".jpg": "jpeg"}[Path(name).suffix]
            (image,) = classifier.preprocess([decode_image(payload, format=kind)], classifier.device)
            exact = look(predict, image, dark, full, step=_STEP)
            target = int(exact.whole.argmax())
            classes = torch.tensor([target])
            (whole,) = fuse(exact, classes, _SIZE, full)
            looks = {}
            for coarse, share in _CHOICES:
                settings = replace(full, coarse=coarse, share=share)
                if coarse not in looks:
                    looks[coarse] = look(predict, image, dark, settings.coarser, step=_STEP)
                closer = look_closer(predict, image, dark, looks[coarse], target, settings, step=_STEP)
                found[coarse, share].append(agreement(whole, fuse(closer, classes, _SIZE, settings)[0]))
    print(f"{len(_IMAGES)} images, sigmas {light:g}, {shadow:g}, {spatial:g} cells; mean (worst)")
    print(
        f"{'coarse':>6}{'share':>7}{'forwards':>10}{'of full':>9}{'Spearman':>17}{'top tenth':>17}{'maxima apart':>17}"
    )
    for (coarse, share), rows in found.items():
        forwards = replace(full, coarse=coarse, share=share).forwards
        columns = list(zip(*rows, strict=True))
        worst = (min(columns[0]), min(columns[1]), max(columns[2]))
        told = "".join(
            f"{statistics.mean(column):>9.3f} ({extreme:.3f})" for column, extreme in zip(columns, worst, strict=True)
        )
        print(f"{coarse:>6}{share:>7.2f}{forwards:>10}{forwards / full.forwards:>9.2f}{told}")


if __name__ == "__main__":
    main()
