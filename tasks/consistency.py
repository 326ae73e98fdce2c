"""How well maps follow the logits: correlation of a map's sum with its logit (Li et al., III.B).

With global average pooling and a linear head the raw sum is the logit less a constant, so a correlation of 1
is then a check of the code and no evidence for the method.
"""

from dataclasses import dataclass
from functools import reduce
from math import comb, erfc, exp, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.reductions.joint_moments import JointMoments

ALPHA = 0.05
_AT_ONCE = 1 << 16
_LINE = 1e-9  # 1 - r^2 up to which pairs lie on a line: what is left is rounding, and has no distribution to test


@dataclass(frozen=True, slots=True)
class Normality:
    """Mardia's tests of bivariate normality (Mardia 1970, asymptotic). skewness: b1, 0 if normal; kurtosis: b2, 8 if
    normal; p_*: of each test; normal: neither rejects. NaN, and not normal, where all pairs lie on a line."""

    skewness: float
    kurtosis: float
    p_skewness: float
    p_kurtosis: float
    normal: bool


@dataclass(frozen=True, slots=True)
class Consistency:
    """Both correlations and how many pairs they rest on; NaN where a side is constant or pairs are under two.

    normal: the pairs pass Mardia's tests of bivariate normality.
    """

    pearson: float
    spearman: float
    n: int
    normal: bool

    @property
    def chosen(self) -> float:
        """The one that counts: Pearson's where the pairs are bivariate normal, else Spearman's."""
        return self.pearson if self.normal else self.spearman


def consistency(logits: NDArray[Any], sums: NDArray[Any]) -> Consistency:
    """Correlate logits [n] and map sums [n]; pairs with a NaN are left out."""
    known = ~(np.isnan(logits) | np.isnan(sums))
    x, y = logits[known].astype(np.float64), sums[known].astype(np.float64)
    parts = (JointMoments.of(x[i : i + _AT_ONCE], y[i : i + _AT_ONCE]) for i in range(0, len(x), _AT_ONCE))
    moments = reduce(JointMoments.merge, parts, JointMoments.empty())
    return Consistency(_pearson(x, y), _pearson(ranks(x), ranks(y)), len(x), mardia(moments).normal)


def mardia(moments: JointMoments) -> Normality:
    """Test at level ALPHA whether pairs are bivariate normal. Of few pairs nothing can be rejected, of very many
    nearly everything is."""
    unit, correlation = _standardised(moments)
    if unit is None:
        return Normality(nan, nan, nan, nan, False)
    # The pairs without their correlation: u, and what is left of v behind u, both with variance 1.
    rest = sqrt(1 - correlation**2)

    def moment(i: int, j: int) -> float:
        terms = (comb(j, k) * (-correlation) ** k * unit[i + k, j - k] for k in range(j + 1))
        return float(sum(terms)) / rest**j

    skewness = moment(3, 0) ** 2 + 3 * moment(2, 1) ** 2 + 3 * moment(1, 2) ** 2 + moment(0, 3) ** 2
    kurtosis = moment(4, 0) + 2 * moment(2, 2) + moment(0, 4)
    statistic = moments.count * skewness / 6
    p_skewness = exp(-statistic / 2) * (1 + statistic / 2)  # the upper tail of chi-square with 4 degrees of freedom
    p_kurtosis = erfc(abs(kurtosis - 8) / sqrt(64 / moments.count) / sqrt(2))  # both tails of the normal distribution
    return Normality(skewness, kurtosis, p_skewness, p_kurtosis, min(p_skewness, p_kurtosis) >= ALPHA)


def _standardised(moments: JointMoments) -> tuple[NDArray[np.float64] | None, float]:
    """Moments of both sides scaled to variance 1, and their correlation; None where all pairs lie on a line."""
    central = moments.central()
    variances = np.array([central[2, 0], central[0, 2]])
    if not np.all(variances > 0):  # also without pairs
        return None, nan
    powers = np.sqrt(variances)[:, None] ** np.arange(len(central))
    unit = central / np.outer(*powers)
    correlation = float(unit[1, 1])
    return (None if 1 - correlation**2 <= _LINE else unit), correlation


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    # Scaled first, so that squares of very large or small numbers stay in range.
    x = (x - x.mean()) / np.ptp(x)
    y = (y - y.mean()) / np.ptp(y)
    # Not the product of matrices, whose sums hang on the number of threads.
    product, square_x, square_y = (float(each.sum()) for each in (x * y, x * x, y * y))
    return float(np.clip(product / sqrt(square_x * square_y), -1.0, 1.0))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1-based ranks; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group])
