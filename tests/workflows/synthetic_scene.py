"""A synthetic archive and classifier: seeded pictures, activations and weights that fit one another.

One bright spot a picture, whose place tells the class; features that answer to places; global average pooling
and a linear head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_NAMES = ("Effusion", "Nodule", "Cardiomegaly", "No Finding", "Fracture", "Mass", "Hernia", "Edema")


@dataclass(frozen=True, slots=True)
class Scene:
    """The imagined archive and model. activations [N,F,h,w], weights [C,F], labels [N] (-1 unlabelled)."""

    pictures: Array
    activations: Array
    weights: Array
    bias: Array
    labels: Array
    classes: tuple[str, ...]

    def logits(self) -> Array:
        return np.asarray(self.activations.mean((2, 3)) @ self.weights.T + self.bias)

    def maps(self) -> Array:
        """Grad-CAM [N,C,h,w]: weights over the cells' number, so that a map sums to logit minus bias."""
        cells = self.activations.shape[2] * self.activations.shape[3]
        return np.asarray(np.einsum("cf,nfhw->nchw", self.weights / cells, self.activations))


def make_scene(*, images: int = 48, classes: int = 4, labelled: bool = True, side: int = 160) -> Scene:
    """A seeded scene of grey pictures [N,side,side,3] that look a little like radiographs."""
    random = np.random.default_rng(20261121)
    names = _NAMES[:classes] if classes <= len(_NAMES) else tuple(f"class {index:04d}" for index in range(classes))
    truth = np.arange(images) % classes
    angle = 2 * np.pi * truth / classes
    y = 0.5 + 0.25 * np.sin(angle) + random.normal(0, 0.04, images)
    x = 0.5 + 0.25 * np.cos(angle) + random.normal(0, 0.04, images)
    strength = random.uniform(0.25, 1.0, images)
    features, cells = 24, 7
    activations = _spots(y, x, strength, cells, 0.11)[:, None] * _features(y, x, features, random)[:, :, None, None]
    activations += 0.12 * _clouds(images, features, cells, random)
    activations[:, -2:] = 0.0  # two features that never answer
    turn = 2 * np.pi * (np.arange(classes)[:, None] / classes - np.arange(features)[None] / features)
    weights = 12.0 * np.cos(turn) + random.normal(0, 1.5, (classes, features))
    pictures = _pictures(y, x, strength, side, random)
    labels = truth if labelled else np.full(images, -1)
    return Scene(pictures, activations, weights, random.normal(0, 0.4, classes), labels, names)


def _clouds(images: int, features: int, cells: int, random: np.random.Generator) -> Array:
    """Smooth background activity in 0..1, mostly near 0."""
    waves = np.cos(np.pi * np.arange(3)[:, None] * (np.arange(cells) + 0.5) / cells)
    amounts = random.normal(0, 0.3, (images, features, 3, 3))
    return np.asarray(np.maximum(np.einsum("nfij,ih,jw->nfhw", amounts, waves, waves), 0) ** 2)


def _spots(y: Array, x: Array, strength: Array, side: int, width: float) -> Array:
    grid = (np.arange(side) + 0.5) / side
    dy = (grid[None, :, None] - y[:, None, None]) ** 2
    dx = (grid[None, None, :] - x[:, None, None]) ** 2
    return np.asarray(strength[:, None, None] * np.exp(-(dy + dx) / (2 * width**2)))


def _features(y: Array, x: Array, features: int, random: np.random.Generator) -> Array:
    angle = 2 * np.pi * np.arange(features) / features
    match = np.cos(np.arctan2(y - 0.5, x - 0.5)[:, None] - angle[None])
    return np.asarray(np.maximum(match, 0) ** 2 + random.uniform(0, 0.1, (len(y), features)))


def _pictures(y: Array, x: Array, strength: Array, side: int, random: np.random.Generator) -> Array:
    grid = (np.arange(side) + 0.5) / side
    body = np.exp(-(((grid[:, None] - 0.55) / 0.42) ** 4) - ((grid[None] - 0.5) / 0.36) ** 4)
    lungs = sum(
        np.exp(-(((grid[:, None] - 0.5) / 0.27) ** 4) - ((grid[None] - centre) / 0.12) ** 4) for centre in (0.34, 0.66)
    )
    ribs = 0.04 * np.sin(grid[:, None] * 60 + 6 * (grid[None] - 0.5) ** 2)
    ground = 0.72 * body - 0.42 * lungs + ribs * body
    grey = ground[None] + 0.45 * _spots(y, x, strength, side, 0.05) + random.normal(0, 0.025, (len(y), side, side))
    return np.repeat((np.clip(grey, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)
