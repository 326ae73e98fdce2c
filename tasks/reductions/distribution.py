"""Distributions as histograms over the float's own bits: exact to merge, in any split and order.

A bucket is a sign, an exponent and the top `bits` mantissa bits of a float32, so buckets are `2**bits` an
octave over the whole range of floats. Zero has a bucket of its own. Buckets are ordered by value; a positive
one holds (lower, upper], a negative one [lower, upper), so nothing above 0 shares a bucket with 0.

Error bound: a quantile differs from the sample it stands for by at most
`2**-(bits + 1) * max(|sample|, smallest normal float32)`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MANTISSA_BITS = 23
_INFINITY = 0x7F800000
_LARGEST = _INFINITY - 1


def buckets_of(values: Tensor, bits: int) -> Tensor:
    """The bucket of each float32 value, int32 of the same shape. Expects finite values."""
    shift = _MANTISSA_BITS - bits
    pattern = values.view(torch.int32)
    magnitude = (pattern & 0x7FFFFFFF).sub_(1).bitwise_right_shift_(shift).add_(1)
    # -1 for a set sign bit, else 0: (m ^ s) - s negates m where s is -1.
    sign = pattern >> 31
    return magnitude.bitwise_xor_(sign).sub_(sign).add_(_side(bits))


def _side(bits: int) -> int:
    """Buckets below zero, and as many above."""
    return ((_LARGEST - 1) >> (_MANTISSA_BITS - bits)) + 1


def _upper_magnitudes(bits: int) -> NDArray[np.float64]:
    """Magnitude at the outer end of the k-th bucket away from zero, [side + 1]; the 0-th is zero itself."""
    patterns = np.minimum(np.arange(_side(bits) + 1, dtype=np.int64) << (_MANTISSA_BITS - bits), _LARGEST)
    return np.asarray(patterns.astype(np.int32).view(np.float32), np.float64)


class Counter:
    """Counts values on their device while a shard is walked, for `rows` distributions at once."""

    def __init__(self, rows: int, bits: int, device: torch.device) -> None:
        self.bits = bits
        self._width = 2 * _side(bits) + 1
        self._counts = torch.zeros(rows * self._width, dtype=torch.int64, device=device)
        self._rows = torch.arange(rows, device=device) * self._width

    def add(self, values: Tensor) -> None:
        """Count finite float32 values [B,rows,...]."""
        flat = values.flatten(2) if values.ndim > 2 else values[..., None]
        keys = buckets_of(flat.contiguous(), self.bits) + self._rows[:, None]
        keys = keys.flatten()
        self._counts.scatter_add_(0, keys, keys.new_ones(1).expand_as(keys))

    def distribution(self) -> "Distribution":
        (keys,) = torch.nonzero(self._counts, as_tuple=True)
        return Distribution(len(self._rows), self.bits, keys.cpu().numpy(), self._counts[keys].cpu().numpy())


@dataclass(frozen=True, slots=True)
class Distribution:
    """`rows` distributions (of classes, of features). keys: row * width + bucket, ascending; counts: int64 > 0."""

    rows: int
    bits: int
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, rows: int, bits: int) -> Self:
        return cls(rows, bits, np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, values: Tensor, bits: int) -> "Distribution":
        """Count float32 values [B,rows,...]. Raises ValueError for NaN and infinity."""
        if not bool(torch.isfinite(values).all()):
            raise ValueError("only finite numbers can be counted")
        counter = Counter(values.shape[1], bits, values.device)
        counter.add(values)
        return counter.distribution()

    def merge(self, other: Self) -> Self:
        if (self.rows, self.bits) != (other.rows, other.bits):
            raise ValueError(
                f"cannot merge {other.rows} distributions of {other.bits} bits into {self.rows} of {self.bits}"
            )
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        return type(self)(self.rows, self.bits, keys, counts)

    @property
    def totals(self) -> NDArray[np.int64]:
        """How many values each row has counted, [rows]."""
        return self._summed(np.ones(len(self.keys), bool))

    @property
    def positives(self) -> NDArray[np.int64]:
        """How many of them are above zero, [rows]."""
        return self._summed(self._buckets > _side(self.bits))

    def quantile(self, share: float) -> NDArray[np.float64]:
        """The smallest counted value that at least `share` of a row's values do not exceed, [rows], within the
        module's error bound. NaN for a row without values."""
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share from 0 to 1, got {share}")
        totals = self.totals
        wanted = np.maximum(np.ceil(share * totals).astype(np.int64), 1)
        before = np.cumsum(totals) - totals  # values of the rows in front
        places = np.searchsorted(np.cumsum(self.counts), before + wanted)
        result = np.full(self.rows, np.nan)
        filled = totals > 0
        result[filled] = self._middles(self._buckets[places[filled]])
        return result

    def above(self, share: float) -> NDArray[np.float64]:
        """The smallest bucket end that at most `share` of a row's values lie strictly above, [rows]."""
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share from 0 to 1, got {share}")
        totals = self.totals
        wanted = np.maximum(totals - np.floor(share * totals).astype(np.int64), 1)
        before = np.cumsum(totals) - totals
        places = np.searchsorted(np.cumsum(self.counts), before + wanted)
        result = np.full(self.rows, np.nan)
        filled = totals > 0
        result[filled] = self.edges(self._buckets[places[filled]])[1]
        return result

    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Counts [rows, occupied] and the buckets [occupied] that any row has values in, ascending by value."""
        buckets, columns = np.unique(self._buckets, return_inverse=True)
        counts = np.zeros((self.rows, len(buckets)), np.int64)
        counts[self.keys // self._width, columns] = self.counts
        return counts, buckets

    def edges(self, buckets: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper end of buckets, as values."""
        outer = _upper_magnitudes(self.bits)
        steps = buckets - _side(self.bits)
        far, near = outer[np.abs(steps)], outer[np.maximum(np.abs(steps) - 1, 0)]
        return np.where(steps < 0, -far, near), np.where(steps < 0, -near, far)

    def _middles(self, buckets: NDArray[np.int64]) -> NDArray[np.float64]:
        lower, upper = self.edges(buckets)
        return np.asarray((lower + upper) / 2)

    def _summed(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        sums = np.zeros(self.rows, np.int64)
        np.add.at(sums, self.keys[chosen] // self._width, self.counts[chosen])
        return sums

    @property
    def _width(self) -> int:
        return 2 * _side(self.bits) + 1

    @property
    def _buckets(self) -> NDArray[np.int64]:
        return self.keys % self._width
