"""How well scores tell positives from negatives: AUROC and average precision, for many weightings from one sort."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ranking:
    """Cases from the highest score to the lowest, of equal scores the positives first.

    order [N]: their places; levels [3,L]: of each distinct score that a positive has, where in this order its positives
    begin, where they end, and where its negatives end.
    """

    order: NDArray[np.int64]
    levels: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> Self:
        """Rank scores [N] of cases that are positive [N] or not. Raises ValueError for NaN."""
        if np.isnan(scores).any():
            raise ValueError("a case without a score has no rank")
        order = np.lexsort((~positive, -scores))
        ordered, positives = scores[order], np.concatenate([[0], np.cumsum(positive[order])])
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(order)])
        ends = np.append(starts, len(order))[1:]
        own = positives[ends] - positives[starts]
        kept = own > 0
        return cls(order, np.stack([starts, starts + own, ends])[:, kept].astype(np.int64))

    def measure(self, weights: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """AUROC and average precision [R] under weights [R,N] >= 0 of the cases in this order; whole numbers add up
        exactly. NaN where only positives or only negatives have a weight: then there is nothing to tell apart.

        Average precision is the step function's area, without interpolation.
        """
        reached = np.zeros((len(weights), len(self.order) + 1), _sum_type(weights))
        np.cumsum(weights, axis=1, out=reached[:, 1:], dtype=reached.dtype)
        start, middle, end = (reached[:, places] for places in self.levels)
        found = middle - start
        recalled = np.cumsum(found, axis=1)
        positives = found.sum(axis=1)
        negatives = reached[:, -1] - positives
        below = negatives[:, None] - (end - recalled) + 0.5 * (end - middle)
        precision = recalled / np.where(end > 0, end, 1)
        with np.errstate(invalid="ignore"):
            auroc = (found * below).sum(axis=1) / (positives.astype(np.float64) * negatives)
            average_precision = (found * precision).sum(axis=1) / positives
        both = (positives > 0) & (negatives > 0)
        return np.where(both, auroc, np.nan), np.where(both, average_precision, np.nan)


def _sum_type(weights: NDArray[Any]) -> type[np.number[Any]]:
    """What sums along weights [R,N] fit into; half the bytes take a quarter of the time."""
    if weights.dtype.kind == "f":
        return np.float64
    return np.int32 if int(weights.max(initial=0)) * weights.shape[1] < 2**31 else np.int64
