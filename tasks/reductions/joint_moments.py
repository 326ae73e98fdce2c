"""Joint moments of two numbers up to the fourth order, mergeable (after Pébay 2008)."""

from dataclasses import dataclass
from math import comb
from typing import Self

import numpy as np
from numpy.typing import NDArray

_ORDER = 4
_KEPT = np.add.outer(np.arange(_ORDER + 1), np.arange(_ORDER + 1)) <= _ORDER
_BINOMIAL = np.array([[comb(i, k) for k in range(_ORDER + 1)] for i in range(_ORDER + 1)], np.float64)
_POWER = np.subtract.outer(np.arange(_ORDER + 1), np.arange(_ORDER + 1)).clip(0)


@dataclass(frozen=True, slots=True)
class JointMoments:
    """Of pairs (x, y): centre [2], a point near their mean; sums [5,5], [i,j] of (x - cx)^i (y - cy)^j, i + j <= 4.

    The centre is not called the mean: where the spread is small beside the mean, the mean's own rounding would show in
    the third moments. Merging is commutative to the bit, and associative up to rounding.
    """

    centre: NDArray[np.float64]
    sums: NDArray[np.float64]

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(2), np.zeros(_KEPT.shape))

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.floating]) -> Self:
        """The pairs of x [n] and y [n]."""
        if len(x) == 0:
            return cls.empty()
        pairs = np.stack([x, y]).astype(np.float64)
        centre = pairs.mean(axis=1)
        from_centre = pairs - centre[:, None]
        powers = [np.ones_like(pairs)]
        for _ in range(_ORDER):
            powers.append(powers[-1] * from_centre)
        along_x, along_y = np.stack(powers, axis=1)
        # Not the product of matrices, whose sums may hang on the number of threads.
        return cls(centre, np.where(_KEPT, np.einsum("in,jn->ij", along_x, along_y), 0.0))

    def merge(self, other: Self) -> Self:
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        centre = (self.count * self.centre + other.count * other.centre) / (self.count + other.count)
        return type(self)(centre, self._shifted(self.centre - centre) + other._shifted(other.centre - centre))

    @property
    def count(self) -> int:
        return int(self.sums[0, 0])

    @property
    def mean(self) -> NDArray[np.float64]:
        """[2]; NaN without pairs."""
        return self.centre + self._from_centre

    def central(self) -> NDArray[np.float64]:
        """Means of (x - mx)^i (y - my)^j about the mean, [5,5], 0 where i + j > 4; NaN without pairs."""
        if not self.count:
            return np.full(_KEPT.shape, np.nan)
        return self._shifted(-self._from_centre) / self.count

    @property
    def _from_centre(self) -> NDArray[np.float64]:
        """How far the mean is from the centre [2]; exact where the mean itself would be rounded."""
        first = np.array([self.sums[1, 0], self.sums[0, 1]])
        return first / self.count if self.count else np.full(2, np.nan)

    def _shifted(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sums of (x - cx + step)^i (y - cy + step)^j, by the binomial theorem."""
        along_x, along_y = (np.tril(_BINOMIAL * step**_POWER) for step in steps)
        return np.where(_KEPT, along_x @ self.sums @ along_y.T, 0.0)
