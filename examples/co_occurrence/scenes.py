"""Canvases of three handwritten digits each, whose rates are set: which digit comes with which, and how often.

At most one digit of a canvas is a target. One target is common, one has a quarter of its canvases and one, the rare
one, a twentieth. Nine in ten canvases with a target show the context digit too, and one in ten of those without.
Other digits fill the canvas. Which digit has which part is drawn from the seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.digits.canvases import Digits, Floats, blank, write

SIDE = 48  # canvas height and width in pixels
DIGITS = 3  # on a canvas
TARGETS = ("frequent", "medium", "rare")
TOGETHER = 0.9  # share of the canvases with a target that show the context too, and of those without that do not
_SMALLEST, _LARGEST = 10, 14  # side of a digit's box in pixels
_TRIES = 50  # at places for a canvas's digits, before all of them are placed anew

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cast:
    """Which of the ten digits has which part. targets: in the order of TARGETS; others: the six without a part."""

    targets: tuple[int, ...]
    context: int
    others: tuple[int, ...]

    @classmethod
    def drawn(cls, seed: int) -> "Cast":
        order = np.random.default_rng([seed, 0]).permutation(10).tolist()
        count = len(TARGETS)
        return cls(tuple(order[:count]), order[count], tuple(order[count + 1 :]))


@dataclass(frozen=True, slots=True)
class Plan:
    """How many canvases a part of the archive has. together, alone: of each target, with the context and without.

    context: with it and no target; neither: with other digits only.
    """

    together: tuple[int, ...]
    alone: tuple[int, ...]
    context: int
    neither: int

    @classmethod
    def training(cls, unit: int) -> "Plan":
        """20, 5 and 1 `unit` of the targets and 10 of canvases without one; unit: a multiple of 10 for exact rates."""
        counts = [20 * unit, 5 * unit, unit]
        together = tuple(round(TOGETHER * count) for count in counts)
        without = 10 * unit
        alone = tuple(count - both for count, both in zip(counts, together, strict=True))
        return cls(together, alone, round((1 - TOGETHER) * without), round(TOGETHER * without))

    @classmethod
    def test(cls, each: int) -> "Plan":
        """As many of every kind: figures of the rare target rest on as many canvases as those of the common one."""
        every = (each,) * len(TARGETS)
        return cls(every, every, each, each)


@dataclass(frozen=True, slots=True)
class Scenes:
    """Canvases without their pixels. digits [N,3]: positions in the pool of handwriting; values [N,3]: which they are.

    target [N]: place in TARGETS, -1 without one; context [N]: whether it is there. Of those that are there, the target
    stands first and the context next.
    """

    digits: Ints
    values: Ints
    target: Ints
    context: NDArray[np.bool_]

    @property
    def labels(self) -> Floats:
        """[N,10], 1 for each digit that the canvas shows."""
        labels = np.zeros((len(self.values), 10), np.float32)
        np.put_along_axis(labels, self.values, 1, axis=1)
        return labels

    def where(self, target: int, *, context: bool) -> Ints:
        """Positions of the canvases with a target, in the company of the context or not."""
        return np.flatnonzero((self.target == target) & (self.context == context))


def compose(plan: Plan, cast: Cast, pool: Digits, seed: int) -> Scenes:
    """In a shuffled order; each digit is a sample of the pool's handwriting."""
    random = np.random.default_rng([seed, 1])
    kinds = [(-1, True)] * plan.context + [(-1, False)] * plan.neither
    for target, (both, alone) in enumerate(zip(plan.together, plan.alone, strict=True)):
        kinds += [(target, True)] * both + [(target, False)] * alone
    shuffled = [kinds[index] for index in random.permutation(len(kinds))]
    values = np.array([_values(cast, target, context, random) for target, context in shuffled], np.int64)
    samples = [np.flatnonzero(pool.values == value) for value in range(10)]
    digits = np.array([[random.choice(samples[value]) for value in row] for row in values], np.int64)
    targets, contexts = zip(*shuffled, strict=True)
    return Scenes(digits, values, np.array(targets, np.int64), np.array(contexts, bool))


def _values(cast: Cast, target: int, context: bool, random: np.random.Generator) -> Sequence[int]:
    shown = [cast.targets[target]] * (target >= 0) + [cast.context] * context
    return [*shown, *random.choice(cast.others, DIGITS - len(shown), replace=False).tolist()]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pixels [N,48,48] in [0,1] and the boxes of the digits [N,3,4]: x0, y0, x1, y1 in pixels, half-open."""

    pixels: Floats
    boxes: Ints


def draw(scenes: Scenes, pool: Digits, seed: int) -> Drawn:
    """Each digit at a place and of a size of its own, none over another. The same seed gives the same canvases."""
    random = np.random.default_rng([seed, 2])
    pixels = blank(random, len(scenes.digits), SIDE)
    boxes = np.stack([_places(random) for _ in scenes.digits])
    for canvas, digits, places in zip(pixels, scenes.digits, boxes, strict=True):
        for digit, box in zip(digits, places, strict=True):
            write(canvas, pool.ink[digit], box, random)
    return Drawn(np.clip(pixels, 0, 1), boxes)


def _places(random: np.random.Generator) -> Ints:
    """Boxes [3,4] that do not overlap."""
    found: list[Ints] = []
    tries = 0
    while len(found) < DIGITS:
        side = int(random.integers(_SMALLEST, _LARGEST + 1))
        x, y = random.integers(0, SIDE - side + 1, 2).tolist()
        box = np.array([x, y, x + side, y + side])
        if not any(overlap(box, other) for other in found):
            found.append(box)
        tries += 1
        if tries % _TRIES == 0:
            found = []
    return np.stack(found)


def overlap(one: Ints, other: Ints) -> bool:
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())
