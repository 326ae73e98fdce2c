"""Sums of several columns by class and group, mergeable: what means and their intervals are made of."""

import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class GroupedSums:
    """keys [n]: class * groups + group, ascending; sums [n,M] float64 and counts [n,M] int64 of M columns' known
    values.

    Counts merge exactly in any order. Merging float sums is commutative to the bit, and associative up to rounding:
    merge in a fixed order.
    """

    groups: int
    keys: NDArray[np.int64]
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, groups: int, columns: int) -> Self:
        return cls(groups, np.zeros(0, np.int64), np.zeros((0, columns)), np.zeros((0, columns), np.int64))

    @classmethod
    def of(
        cls,
        groups: int,
        classes: NDArray[np.integer[Any]],
        members: NDArray[np.integer[Any]],
        values: NDArray[np.floating],
    ) -> Self:
        """Of cases: their classes [N], which of the groups they are in [N], and values [N,M], NaN where unknown."""
        known = ~np.isnan(values)
        keys, places = np.unique(classes.astype(np.int64) * groups + members, return_inverse=True)
        return cls(
            groups, keys, _added(np.where(known, values, 0.0), places, len(keys)), _added(known, places, len(keys))
        )

    def merge(self, other: Self) -> Self:
        """Both. Raises ValueError where they do not have the same groups and columns."""
        if (self.groups, self.columns) != (other.groups, other.columns):
            raise ValueError(
                f"cannot merge {other.columns} columns of {other.groups} groups into {self.columns} of {self.groups}"
            )
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        sums = _added(np.concatenate([self.sums, other.sums]), places, len(keys))
        return type(self)(
            self.groups, keys, sums, _added(np.concatenate([self.counts, other.counts]), places, len(keys))
        )

    @property
    def columns(self) -> int:
        return int(self.sums.shape[1])

    @property
    def classes(self) -> NDArray[np.int64]:
        """Those that have a case, ascending."""
        return np.unique(self.keys // self.groups) if self.groups else self.keys

    def of_all_classes(self) -> Self:
        """Of all classes together, as of class 0."""
        keys, places = np.unique(self.keys % max(1, self.groups), return_inverse=True)
        return type(self)(
            self.groups, keys, _added(self.sums, places, len(keys)), _added(self.counts, places, len(keys))
        )

    def dense(self, column: int, classes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Sums and counts [G,K] of one column for some classes [K], ascending."""
        category, group = np.divmod(self.keys, max(1, self.groups))
        chosen = np.isin(category, classes)
        place = np.searchsorted(classes, category[chosen])
        sums = np.zeros((self.groups, len(classes)))
        counts = np.zeros((self.groups, len(classes)), np.int64)
        sums[group[chosen], place] = self.sums[chosen, column]
        counts[group[chosen], place] = self.counts[chosen, column]
        return sums, counts

    def to_bytes(self) -> bytes:
        """Everything, as npz. The same sums give the same bytes."""
        buffer = io.BytesIO()
        groups = np.array(self.groups, np.int64)
        np.savez(buffer, allow_pickle=False, groups=groups, keys=self.keys, sums=self.sums, counts=self.counts)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            return cls(int(archive["groups"]), archive["keys"], archive["sums"], archive["counts"])


def _added(values: NDArray[Any], places: NDArray[np.integer[Any]], length: int) -> NDArray[Any]:
    """Sums [length,M] of the rows of values [N,M] by their place [N], added in their order."""
    sums = np.zeros((length, values.shape[1]), np.int64 if values.dtype.kind in "bi" else np.float64)
    np.add.at(sums, places, values)
    return sums
