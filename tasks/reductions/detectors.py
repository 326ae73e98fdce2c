"""Which features detect which class: how often they have concepts in its boxes, and the images that excite them."""

import io
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

STRONGEST = 8
"""Images that are kept of each feature."""


@dataclass(frozen=True, slots=True)
class Detectors:
    """A reduction over images, exact in any split and order.

    images [C] int64: with boxes of the class; detected [F,C] int64: of them, those where the feature has a concept that
    meets the boxes; components [F,C] int64: such concepts. strongest_value [F,K] float32, strongest_row [F,K] int64:
    the highest activation in an image and the image's row, falling, of equals the lower row first; -inf and -1 where
    there are no more images.
    """

    images: NDArray[np.int64]
    detected: NDArray[np.int64]
    components: NDArray[np.int64]
    strongest_value: NDArray[np.float32]
    strongest_row: NDArray[np.int64]

    @classmethod
    def empty(cls, features: int, classes: int) -> Self:
        """Of no image; features: 0 where nobody knows them yet."""
        return cls(
            np.zeros(classes, np.int64),
            np.zeros((features, classes), np.int64),
            np.zeros((features, classes), np.int64),
            np.full((features, STRONGEST), -np.inf, np.float32),
            np.full((features, STRONGEST), -1, np.int64),
        )

    @classmethod
    def of(
        cls, counts: Tensor, category: NDArray[np.int64], activation: Tensor, rows: NDArray[np.int64], classes: int
    ) -> Self:
        """Of a batch. counts [n,F] int64: concepts in the boxes of a class in an image; category [n]: the class;
        activation [B,F,...] of all images of the batch, with boxes or without; rows [B]: theirs in the catalogue."""
        held = counts.cpu().numpy()
        nothing = cls.empty(held.shape[1], classes)
        np.add.at(nothing.images, category, 1)
        np.add.at(nothing.detected.T, category, held > 0)
        np.add.at(nothing.components.T, category, held)
        peaks = activation.flatten(2).amax(2).float().cpu().numpy().T
        value = np.concatenate([nothing.strongest_value, peaks], axis=1)
        row = np.concatenate([nothing.strongest_row, np.broadcast_to(rows, peaks.shape)], axis=1)
        return cls(nothing.images, nothing.detected, nothing.components, *_strongest(value, row))

    def merge(self, other: Self) -> Self:
        """Both. Raises ValueError where they are not of one model."""
        if len(self.images) != len(other.images) or (
            self.features != other.features and self.features and other.features
        ):
            raise ValueError(
                f"cannot merge detectors of {self.detected.shape} features and classes and of {other.detected.shape}"
            )
        if not (self.features and other.features):  # a shard without a good image does not know its features
            return self if self.features else other
        value = np.concatenate([self.strongest_value, other.strongest_value], axis=1)
        row = np.concatenate([self.strongest_row, other.strongest_row], axis=1)
        return type(self)(
            self.images + other.images,
            self.detected + other.detected,
            self.components + other.components,
            *_strongest(value, row),
        )

    def of_rows(self, rows: NDArray[np.int64]) -> Self:
        """The same, where what it took for rows were places among these rows [N], ascending."""
        known = self.strongest_row >= 0
        return replace(self, strongest_row=np.where(known, rows[np.where(known, self.strongest_row, 0)], -1))

    @property
    def features(self) -> int:
        return len(self.detected)

    def rate(self) -> NDArray[np.float64]:
        """In which share of the images with boxes of the class the feature has a concept there [F,C]; NaN without."""
        return np.asarray(self.detected / np.where(self.images > 0, self.images, np.nan))

    def best(self, count: int) -> NDArray[np.int64]:
        """The features that detect each class most often [C,count], of equals the first; -1 where no more ever do."""
        order = np.argsort(-self.detected, axis=0, kind="stable")[:count]
        ever = np.take_along_axis(self.detected, order, axis=0) > 0
        found = np.full((len(self.images), count), -1, np.int64)
        found[:, : len(order)] = np.where(ever, order, -1).T
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By their path in concepts.zarr."""
        return {
            "images": self.images,
            "detected": self.detected,
            "components": self.components,
            "strongest_value": self.strongest_value,
            "strongest_row": self.strongest_row,
        }

    def to_bytes(self) -> bytes:
        """Everything, as npz. The same detectors give the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.arrays())
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            return cls(**{name: archive[name] for name in archive.files})


def _strongest(value: NDArray[np.float32], row: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first of many [F,n], by falling value, then by row."""
    order = np.lexsort((row, -value), axis=1)[:, :STRONGEST]
    return np.take_along_axis(value, order, 1), np.take_along_axis(row, order, 1)
