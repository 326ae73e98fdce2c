"""The importance matrix as a mergeable sum (Li et al., eq. 3-4)."""

from dataclasses import dataclass
from math import ceil
from typing import Self

import numpy as np
from numpy.typing import NDArray

RANKS = ("value", "absdiff")


@dataclass(frozen=True, slots=True)
class Importance:
    """Sum over images of each feature's class activation. sums [F,C] float64, images [C] int64.

    Float sums: merging is commutative to the bit, and associative up to rounding. Merge in a fixed order.
    """

    sums: NDArray[np.float64]
    images: NDArray[np.int64]

    @classmethod
    def empty(cls, features: int, classes: int) -> Self:
        return cls(np.zeros((features, classes)), np.zeros(classes, np.int64))

    def merge(self, other: Self) -> Self:
        return type(self)(self.sums + other.sums, self.images + other.images)

    def matrix(self) -> NDArray[np.float64]:
        """Mean over images [F,C]; NaN where a class has none."""
        images = np.where(self.images > 0, self.images, np.nan)
        return np.asarray(self.sums / images)


def principal_features(matrix: NDArray[np.float64], *, share: float, rank: str) -> NDArray[np.bool_]:
    """The max(1, ceil(share F)) first features of each class of an importance matrix [F,C] -> mask [F,C].

    rank `value`: largest first; `absdiff`: farthest from the mean over classes first. Of equal features the
    first wins. A class without importance (NaN) has no principal features: its column is all False.
    """
    if rank not in RANKS:
        raise ValueError(f"unknown rank {rank!r}; expected one of {', '.join(RANKS)}")
    if not 0 < share <= 1:
        raise ValueError(f"expected a share above 0 and up to 1, got {share}")
    known = ~np.isnan(matrix).any(axis=0)
    score = matrix
    if rank == "absdiff" and known.any():
        score = np.abs(matrix - matrix[:, known].mean(axis=1, keepdims=True))
    kept = max(1, ceil(round(share * len(matrix), 9)))  # 0.07 * 100 is 7, not the 7.000000000000001 of floats
    order = np.argsort(-score, axis=0, kind="stable")[:kept]
    mask = np.zeros(matrix.shape, bool)
    np.put_along_axis(mask, order, True, axis=0)
    return mask & known
