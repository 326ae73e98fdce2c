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
    pixels = blank(random, len(digits.ink), SIDE)
    boxes = np.empty((len(digits.ink), 4), np.int64)
    for index, ink in enumerate(digits.ink):
        side = int(random.integers(_SMALLEST, _LARGEST + 1))
        x, y = random.integers(0, SIDE - side + 1, 2).tolist()
        boxes[index] = x, y, x + side, y + side
        write(pixels[index], ink, boxes[index], random)
    return Canvases(np.clip(pixels, 0, 1), boxes)


def blank(random: np.random.Generator, count: int, side: int) -> Floats:
    """Canvases [N,side,side] with noise and nothing else; it may leave [0,1]."""
    return random.normal(_BACKGROUND, _NOISE, (count, side, side)).astype(np.float32)


def write(canvas: Floats, ink: Floats, box: NDArray[np.int64], random: np.random.Generator) -> None:
    """Add a digit, as bright as drawn, to a canvas [H,W] in a square box."""
    x0, y0, x1, y1 = box.tolist()
    stroke = Image.fromarray(ink).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
    canvas[y0:y1, x0:x1] += np.clip(np.asarray(stroke), 0, 1) * random.uniform(0.5, 0.8)
