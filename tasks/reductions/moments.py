"""Count, mean, variance and range of several numbers at once, mergeable (Chan et al. 1979)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Moments:
    """Of `count` vectors: mean, sum of squared deviations and range, float64 [C].

    Merging is commutative to the bit, and associative up to rounding: merge in a fixed order.
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @classmethod
    def empty(cls, width: int) -> Self:
        return cls(0, np.zeros(width), np.zeros(width), np.full(width, np.inf), np.full(width, -np.inf))

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Self:
        """The rows of values [N,C]."""
        if len(values) == 0:
            return cls.empty(values.shape[1])
        exact = values.astype(np.float64)
        mean = exact.mean(axis=0)
        squares = ((exact - mean) ** 2).sum(axis=0)
        return cls(len(exact), mean, squares, exact.min(axis=0), exact.max(axis=0))

    def merge(self, other: Self) -> Self:
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        shift = other.mean - self.mean
        return type(self)(
            count,
            (self.count * self.mean + other.count * other.mean) / count,
            self.squares + other.squares + shift**2 * (self.count * other.count / count),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    def variance(self) -> NDArray[np.float64]:
        """Population variance [C]; NaN without values."""
        return self.squares / self.count if self.count else np.full_like(self.squares, np.nan)
