"""What may go with a finding and is none: a letter in a corner, a tube."""

import numpy as np
from scipy.ndimage import gaussian_filter

from examples.phantom.anatomy import Frame
from examples.phantom.findings import Drawn, boxed

_LETTER = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.float32)  # an L of lead


def marker(frame: Frame, random: np.random.Generator) -> Drawn:
    """In the image's upper right corner, always as bright as bone is not."""
    side = len(frame.u)
    cell = max(1, round(0.014 * side * random.uniform(0.85, 1.15)))
    letter = np.kron(_LETTER, np.ones((cell, cell), np.float32))
    y = round(side * random.uniform(0.03, 0.07))
    x = side - letter.shape[1] - round(side * random.uniform(0.03, 0.07))
    added = np.zeros((side, side), np.float32)
    added[y : y + letter.shape[0], x : x + letter.shape[1]] = 0.95 * letter
    return boxed(added)


def tube(frame: Frame, random: np.random.Generator) -> Drawn:
    """From the neck down, beside the spine: two bright walls."""
    way = np.linspace(0, 1, 6 * len(frame.u), dtype=np.float32)
    bend = random.normal(0, 0.03)
    u = np.float32(random.normal(0, 0.02)) + bend * np.sin(3 * way)
    v = -1.1 + way * random.uniform(0.9, 1.1)
    side = len(frame.u)
    added = np.zeros((side, side), np.float32)
    for wall in (-0.022, 0.022):
        x, y = (np.rint(axis).astype(int) for axis in frame.pixels(u + np.float32(wall), v))
        seen = (x >= 0) & (x < side) & (y >= 0) & (y < side)
        added[y[seen], x[seen]] = 1
    return boxed(0.16 * gaussian_filter(added, 0.0035 * side) * 0.0035 * side * 2.5)


CONFOUNDERS = {"marker": marker, "tube": tube}
