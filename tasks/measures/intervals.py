"""Intervals by the bootstrap over patients: images of one patient are alike, and are drawn together or not at all.

An interval goes from one percentile of a measure's replicates to another. A replicate draws as many patients as there
are, with replacement, and measures with each image as often as its patient was drawn. Of few patients (some thirty or
less) such intervals are known to be too narrow.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasks.measures.performance import Ranking

MOST_GROUPS = 10_000
_ELEMENTS = 1 << 22  # of an array that is worked on at once
_EXACT_BITS = 51  # of the 53 that float64 has: two are left for what rounding adds
_FLAT = 1e-12  # variance of a replicate, in units of the whole's, up to which it is rounding

Interval = tuple[NDArray[np.float64], NDArray[np.float64]]


def patient_groups(patients: NDArray[np.int64], *, seed: int, most: int = MOST_GROUPS) -> NDArray[np.int32]:
    """The group [N] that each image is drawn with, from 0. patients [N]: a number a patient, -1 where nobody knows:
    such an image is its own patient.

    A group is a patient. More than `most` patients are put into so many groups, evenly and by chance of the seed. That
    is valid: groups of independent patients are independent too, and a sum over them varies as much. How much is only
    judged from fewer parts: with 10 000 an interval's width is off by about 1 / sqrt(2 * 10 000), under one percent,
    which is less than what a thousand replicates leave open.
    """
    unknown = patients < 0
    _, groups = np.unique(patients, return_inverse=True)
    groups[unknown] = groups.max(initial=-1) + 1 + np.arange(np.count_nonzero(unknown))
    _, groups = np.unique(groups, return_inverse=True)  # -1 has left a gap
    count = int(groups.max(initial=-1)) + 1
    if count > most:
        groups = (np.random.default_rng([seed, 0]).permutation(count) % most)[groups]
    return groups.astype(np.int32)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """draws [R,G] int16: how often each replicate has each group; confidence: that intervals hold the true value.

    Values that no replicate has, or that hang on one group alone, have no interval: both its ends are NaN.
    """

    draws: NDArray[np.int16]
    confidence: float

    @classmethod
    def seeded(cls, groups: int, *, replicates: int, confidence: float, seed: int) -> Self:
        random = np.random.default_rng([seed, 1])
        draws = np.empty((replicates, groups), np.int16)
        for row in draws:
            row[:] = np.bincount(random.integers(0, max(groups, 1), groups), minlength=groups)
        return cls(draws, confidence)

    def interval(self, replicates: NDArray[np.float64]) -> Interval:
        """The percentiles [K] of values [R,K]; replicates without a value (NaN) do not count."""
        some = ~np.isnan(replicates).all(axis=0)
        ends = np.full((2, replicates.shape[1]), np.nan)
        shares = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
        ends[:, some] = np.nanquantile(replicates[:, some], shares, axis=0)
        return ends[0], ends[1]

    def mean_interval(self, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> Interval:
        """Of means [K], from each group's sums and counts [G,K]. A column that only some images have, because they are
        a sample or have a label, gets the interval of these images."""
        return self.interval(self.means(sums, counts))

    def means(self, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Each replicate's means [R,K], from each group's sums and counts [G,K]; NaN where it has nothing to average,
        and in a column that hangs on one group alone."""
        active = np.flatnonzero(counts.any(axis=1))
        total, count = np.split(
            self._weighted(np.hstack([sums[active], counts[active].astype(np.float64)]), active), 2, axis=1
        )
        count[(count == 0) | ((counts > 0).sum(axis=0) < 2)] = np.nan
        return np.asarray(total / count)

    def correlation_interval(
        self, x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.integer[Any]]
    ) -> tuple[float, float]:
        """Of Pearson's correlation of x [n] and y [n]. Given ranks among all cases it is that of Spearman's, whose
        replicates then keep these ranks instead of ranking anew: a difference that vanishes with the number of cases.
        """
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return np.nan, np.nan
        active, index = np.unique(groups, return_inverse=True)
        if len(active) < 2:
            return np.nan, np.nan
        x, y = ((side - side.mean()) / np.ptp(side) for side in (x, y))
        x, y = x / np.sqrt((x**2).mean()), y / np.sqrt((y**2).mean())
        columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
        moments = np.stack([np.bincount(index, column) for column in columns], axis=1)
        count, *rest = self._weighted(moments, active).T
        count[count == 0] = np.nan
        mean_x, mean_y, square_x, square_y, product = (column / count for column in rest)
        variances = np.stack([square_x - mean_x**2, square_y - mean_y**2])
        variances[variances <= _FLAT] = np.nan
        correlations = np.clip((product - mean_x * mean_y) / np.sqrt(variances.prod(axis=0)), -1.0, 1.0)
        (low,), (high,) = self.interval(correlations[:, None])
        return float(low), float(high)

    def performance(self, ranking: Ranking, groups: NDArray[np.integer[Any]]) -> Interval:
        """AUROC and average precision of each replicate, [R] and [R]; groups [N] of the cases that were ranked. NaN
        for a replicate without a positive, or without a negative."""
        ordered = groups[ranking.order]
        parts = [ranking.measure(np.take(draws, ordered, axis=1)) for draws in self._chunks(len(ordered))]
        auroc, average_precision = (np.concatenate(values) for values in zip(*parts, strict=True))
        return auroc, average_precision

    def _weighted(self, columns: NDArray[Any], active: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Each replicate's sums [R,M] of columns [A,M], the rows of some groups [A].

        Libraries add up a product in an order that hangs on the number of threads. So the columns are rounded to whole
        steps, of some 1e-15 of their sum, whose products and sums float64 holds exactly: any order gives the same bits.
        """
        most = np.abs(columns).sum(axis=0) * self.draws.max(initial=1)
        steps = np.ldexp(1.0, np.frexp(most)[1] - _EXACT_BITS)
        whole = np.rint(columns / steps)
        parts = [np.take(draws, active, axis=1).astype(np.float64) @ whole for draws in self._chunks(len(active))]
        return np.asarray(steps * np.concatenate(parts))

    def _chunks(self, width: int) -> list[NDArray[np.int16]]:
        """Replicates, as many at once as may have an array of so many columns."""
        length = max(1, _ELEMENTS // max(1, width))
        return [self.draws[i : i + length] for i in range(0, len(self.draws), length)]
