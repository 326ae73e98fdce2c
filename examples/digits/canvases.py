"""Scikit-learn's handwritten digits, each drawn once at a seeded place on a larger noisy canvas."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from examples.digits.digits_model import SIDE

_SMALLEST, _LARGEST = 20, 30  # side of the drawn digit in pixels
_BACKGROUND, _NOISE = 0.15, 0.08  # grey level and its standard deviation, of 1

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Digits:
    """The digits as scikit-learn gives them: ink [N,8,8] in [0,1] and the digit each is [N]."""

    ink: Floats
    values: NDArray[np.int64]

    def take(self, chosen: NDArray[np.int64]) -> "Digits":
        return Digits(self.ink[chosen], self.values[chosen])


@dataclass(frozen=True, slots=True)
class Canvases:
    """Canvases [N,64,64] in [0,1] and the box of each digit [N,4]: x0, y0, x1, y1 in pixels, half-open."""

    pixels: Floats
    boxes: NDArray[np.int64]


def read_digits() -> Digits:
    bunch = load_digits()
    return Digits((bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64))


def draw(digits: Digits, seed: int) -> Canvases:
    """The same seed gives the same canvases."""
    random = np.random.default_rng(seed)
    pixels = random.normal(_BACKGROUND, _NOISE, (len(digits.ink), SIDE, SIDE)).astype(np.float32)
    boxes = np.empty((len(digits.ink), 4), np.int64)
    for index, ink in enumerate(digits.ink):
        side = int(random.integers(_SMALLEST, _LARGEST + 1))
        x, y = random.integers(0, SIDE - side + 1, 2).tolist()
        stroke = Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC)
        pixels[index, y : y + side, x : x + side] += np.clip(np.asarray(stroke), 0, 1) * random.uniform(0.5, 0.8)
        boxes[index] = x, y, x + side, y + side
    return Canvases(np.clip(pixels, 0, 1), boxes)
