"""The profile of an archive: every statistic of pass 1, as one mergeable value."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasks.reductions.distribution import Distribution
from tasks.reductions.importance import Importance, principal_features
from tasks.reductions.memory_use import MemoryUse, merge_uses
from tasks.reductions.moments import Moments

KINDS = ("all", "true", "correct")
LIMIT_SOURCES = ("pixel", "extrema")
# Limits as published code takes them: median of each image's minimum, P90 of each image's maximum.
_MINIMA_SHARE, _MAXIMA_SHARE = 0.5, 0.9


@dataclass(frozen=True, slots=True)
class Levels:
    """Distributions of class-activation cells at native resolution, a row a class.

    minima and maxima: of each image's least and greatest cell; None unless asked for.
    """

    cells: Distribution
    minima: Distribution | None
    maxima: Distribution | None

    def merge(self, other: Self) -> Self:
        return type(self)(
            self.cells.merge(other.cells),
            _merge_both(self.minima, other.minima),
            _merge_both(self.maxima, other.maxima),
        )

    def limits(self, source: str, low: float, high: float) -> NDArray[np.float64]:
        if source == "pixel":
            return np.stack([self.cells.quantile(low), self.cells.quantile(high)], axis=1)
        if source != "extrema":
            raise ValueError(f"unknown source of limits {source!r}; expected one of {', '.join(LIMIT_SOURCES)}")
        if self.minima is None or self.maxima is None:
            raise ValueError("the profile was made without extrema")
        return np.stack([self.minima.quantile(_MINIMA_SHARE), self.maxima.quantile(_MAXIMA_SHARE)], axis=1)


@dataclass(frozen=True, slots=True)
class Profile:
    """A reduction over images. Integers merge exactly in any order; float sums do so in a fixed order."""

    images: int
    labelled: int  # images with a known label
    labels: NDArray[np.int64]  # [C] images labelled with the class
    predictions: NDArray[np.int64]  # [C] images predicted as the class
    logits: Moments
    features: Distribution  # a row a feature: all cells of A
    importance: Mapping[str, Mapping[str, Importance]]  # base method that has features -> all | true | correct
    levels: Mapping[str, Levels]  # base method
    memory: MemoryUse | None = None  # with m-cam among the base methods

    @classmethod
    def empty(
        cls,
        *,
        bases: Iterable[str],
        featured: Iterable[str] | None = None,
        classes: int,
        features: int = 0,
        bits: int = 5,
        extrema: bool = False,
        slots: int | None = None,
    ) -> Self:
        """Of no image. featured: the bases with an importance matrix; None: all. slots: of a memory, if asked."""
        nothing = Distribution.empty(classes, bits)
        extreme = nothing if extrema else None
        bases = tuple(bases)
        return cls(
            images=0,
            labelled=0,
            labels=np.zeros(classes, np.int64),
            predictions=np.zeros(classes, np.int64),
            logits=Moments.empty(classes),
            features=Distribution.empty(features, bits),
            importance={
                base: {kind: Importance.empty(features, classes) for kind in KINDS}
                for base in (bases if featured is None else featured)
            },
            levels={base: Levels(nothing, extreme, extreme) for base in bases},
            memory=None if slots is None else MemoryUse.empty(slots, classes),
        )

    def merge(self, other: Self) -> Self:
        """Both. Raises ValueError where they are not profiles of one model under one setting."""
        if (self.levels.keys(), self.importance.keys()) != (other.levels.keys(), other.importance.keys()):
            raise ValueError(f"cannot merge profiles of {sorted(self.levels)} and {sorted(other.levels)}")
        memory = merge_uses(self.memory, other.memory)
        if self.images == 0 or other.images == 0:  # a shard without a good image does not know its features
            return other if self.images == 0 else self
        return type(self)(
            images=self.images + other.images,
            labelled=self.labelled + other.labelled,
            labels=self.labels + other.labels,
            predictions=self.predictions + other.predictions,
            logits=self.logits.merge(other.logits),
            features=self.features.merge(other.features),
            importance={
                base: {kind: kinds[kind].merge(other.importance[base][kind]) for kind in KINDS}
                for base, kinds in self.importance.items()
            },
            levels={base: levels.merge(other.levels[base]) for base, levels in self.levels.items()},
            memory=memory,
        )

    def limits(self, base: str, *, source: str = "pixel", low: float = 0.1, high: float = 0.9) -> NDArray[np.float64]:
        """The common scale's lower and upper limit of each class, [C,2]: P10 and P90 of all cells by default."""
        return self.levels[base].limits(source, low, high)

    def mask(
        self, base: str, *, share: float = 0.05, rank: str = "value", importance: str = "all"
    ) -> NDArray[np.bool_]:
        """The principal features of each class, [F,C]. A class without importance has none."""
        return principal_features(self.importance[base][importance].matrix(), share=share, rank=rank)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The finished numbers by their path in profile.zarr."""
        arrays: dict[str, NDArray[Any]] = {
            "images": np.array(self.images, np.int64),
            "labels/count": self.labels,
            "labels/images": np.array(self.labelled, np.int64),
            "predictions/count": self.predictions,
            "logits/mean": self.logits.mean,
            "logits/variance": self.logits.variance(),
            "logits/minimum": self.logits.minimum,
            "logits/maximum": self.logits.maximum,
        }
        if self.features.rows:  # a black box has none
            totals = self.features.totals
            arrays["features/active"] = np.where(totals > 0, self.features.positives / np.maximum(totals, 1), np.nan)
            arrays |= _histogram(self.features, "features/", "histogram")
        for base, kinds in self.importance.items():
            arrays |= {f"importance/{base}/{kind}": matrix.matrix() for kind, matrix in kinds.items()}
        for base, levels in self.levels.items():
            for name, cells in (("histogram", levels.cells), ("minima", levels.minima), ("maxima", levels.maxima)):
                if cells is not None:
                    arrays |= _histogram(cells, f"levels/{base}/", name)
        if self.memory is not None:
            arrays |= {f"memory/{name}": values for name, values in self.memory.arrays().items()}
        return arrays

    def to_bytes(self) -> bytes:
        """Everything, as npz. The same profile gives the same bytes."""
        entries: dict[str, NDArray[Any]] = {
            "bases": np.array(list(self.levels), np.str_),
            "featured": np.array(list(self.importance), np.str_),
            "shape": np.array([self.features.rows, len(self.labels), self.features.bits], np.int64),
            "images": np.array([self.images, self.labelled], np.int64),
            "labels": self.labels,
            "predictions": self.predictions,
            "logits.count": np.array(self.logits.count, np.int64),
            "logits": np.stack([self.logits.mean, self.logits.squares, self.logits.minimum, self.logits.maximum]),
        }
        entries |= _packed(self.features, "features")
        for base, levels in self.levels.items():
            for part, cells in (("cells", levels.cells), ("minima", levels.minima), ("maxima", levels.maxima)):
                entries |= {} if cells is None else _packed(cells, f"{base}.{part}")
        for base, kinds in self.importance.items():
            for kind, matrix in kinds.items():
                known = np.flatnonzero(matrix.images)
                entries[f"{base}.{kind}.classes"] = known
                entries[f"{base}.{kind}.images"] = matrix.images[known]
                entries[f"{base}.{kind}.sums"] = matrix.sums[:, known]
        if self.memory is not None:
            entries |= {f"memory.{name}": values for name, values in self.memory.arrays().items()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **entries)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            entries = {name: archive[name] for name in archive.files}
        features, classes, bits = (int(value) for value in entries["shape"])
        bases, featured = entries["bases"].tolist(), entries["featured"].tolist()
        mean, squares, minimum, maximum = entries["logits"]
        return cls(
            images=int(entries["images"][0]),
            labelled=int(entries["images"][1]),
            labels=entries["labels"],
            predictions=entries["predictions"],
            logits=Moments(int(entries["logits.count"]), mean, squares, minimum, maximum),
            features=_unpacked(entries, "features", features, bits),
            importance={
                base: {kind: _importance(entries, f"{base}.{kind}", features, classes) for kind in KINDS}
                for base in featured
            },
            levels={
                base: Levels(
                    _unpacked(entries, f"{base}.cells", classes, bits),
                    _unpacked_if_there(entries, f"{base}.minima", classes, bits),
                    _unpacked_if_there(entries, f"{base}.maxima", classes, bits),
                )
                for base in bases
            },
            memory=_memory(entries),
        )


def _merge_both(left: Distribution | None, right: Distribution | None) -> Distribution | None:
    if (left is None) != (right is None):
        raise ValueError("cannot merge a profile with extrema and one without")
    return None if left is None or right is None else left.merge(right)


def _histogram(distribution: Distribution, folder: str, name: str) -> dict[str, NDArray[Any]]:
    counts, buckets = distribution.table()
    lower, upper = distribution.edges(buckets)
    prefix = folder if name == "histogram" else f"{folder}{name}_"
    return {f"{folder}{name}": counts, f"{prefix}lower": lower, f"{prefix}upper": upper}


def _packed(distribution: Distribution, name: str) -> dict[str, NDArray[Any]]:
    return {f"{name}.keys": distribution.keys, f"{name}.counts": distribution.counts}


def _unpacked(entries: Mapping[str, NDArray[Any]], name: str, rows: int, bits: int) -> Distribution:
    return Distribution(rows, bits, entries[f"{name}.keys"], entries[f"{name}.counts"])


def _unpacked_if_there(entries: Mapping[str, NDArray[Any]], name: str, rows: int, bits: int) -> Distribution | None:
    return _unpacked(entries, name, rows, bits) if f"{name}.keys" in entries else None


def _importance(entries: Mapping[str, NDArray[Any]], name: str, features: int, classes: int) -> Importance:
    empty = Importance.empty(features, classes)
    known = entries[f"{name}.classes"]
    empty.sums[:, known] = entries[f"{name}.sums"]
    empty.images[known] = entries[f"{name}.images"]
    return empty


def _memory(entries: Mapping[str, NDArray[Any]]) -> MemoryUse | None:
    prefix = "memory."
    arrays = {name.removeprefix(prefix): values for name, values in entries.items() if name.startswith(prefix)}
    return MemoryUse.from_arrays(arrays) if arrays else None
