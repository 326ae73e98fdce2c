"""How well maps follow the logits: correlation of a map's sum with its logit (Li et al., III.B).

With global average pooling and a linear head the raw sum is the logit less a constant, so a correlation of 1
is then a check of the code and no evidence for the method.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Consistency:
    """Both correlations and how many pairs they rest on; NaN where a side is constant or pairs are under two."""

    pearson: float
    spearman: float
    n: int


def consistency(logits: NDArray[Any], sums: NDArray[Any]) -> Consistency:
    """Correlate logits [n] and map sums [n]; pairs with a NaN are left out."""
    known = ~(np.isnan(logits) | np.isnan(sums))
    x, y = logits[known].astype(np.float64), sums[known].astype(np.float64)
    return Consistency(_pearson(x, y), _pearson(_ranks(x), _ranks(y)), len(x))


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    # Scaled first, so that squares of very large or small numbers stay in range.
    x = (x - x.mean()) / np.ptp(x)
    y = (y - y.mean()) / np.ptp(y)
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1-based ranks; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]
