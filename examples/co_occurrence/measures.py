"""How much of a map lies on the target, how much on its context, and on which of the two its highest place is."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from examples.co_occurrence.scenes import Ints

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures of maps, one for each [N], in [0,1]. The map's energy: the sum over its pixels, relu'd and min-maxed.

    of_both: the target's share of the energy in the boxes of target and context; energy_target, energy_context: shares
    of the energy of the whole map; peak_target, peak_context: 1 where the highest pixel, of equals the first, lies in
    the box; empty: 1 where nothing is above the minimum, and all else is 0. NaN in each that needs a context, if none
    is there.
    """

    of_both: Floats
    energy_target: Floats
    energy_context: Floats
    peak_target: Floats
    peak_context: Floats
    empty: Floats

    def means(self) -> dict[str, float]:
        """Of no map: NaN."""
        return {one.name: float(values.mean()) if len(values := getattr(self, one.name)) else np.nan for one in NAMES}

    def take(self, chosen: NDArray[np.bool_]) -> "Measures":
        return Measures(*(getattr(self, one.name)[chosen] for one in NAMES))


NAMES = fields(Measures)


def measured(maps: NDArray[np.floating], target: Ints, context: Ints | None) -> Measures:
    """Of signed maps [N,H,W] and the boxes [N,4] of each map's target and context; None: the context is not there.

    Raises ValueError for maps that are not numbers.
    """
    if not np.isfinite(maps).all():
        raise ValueError("expected finite maps, got NaN or infinity")
    shown = scaled(maps)
    peaks = np.zeros_like(shown)
    np.put_along_axis(peaks.reshape(len(shown), -1), shown.reshape(len(shown), -1).argmax(1)[:, None], 1, axis=1)
    total = shown.sum((1, 2))
    empty = (total == 0).astype(float)
    peaks *= 1 - empty[:, None, None]
    on_target, peak_target = _inside(shown, target), _inside(peaks, target)
    if context is None:
        unknown = np.full(len(maps), np.nan)
        return Measures(unknown, _share(on_target, total), unknown, peak_target, unknown, empty)
    on_context = _inside(shown, context)
    return Measures(
        _share(on_target, on_target + on_context),
        _share(on_target, total),
        _share(on_context, total),
        peak_target,
        _inside(peaks, context),
        empty,
    )


def by_area(target: Ints, context: Ints | None, side: int) -> Measures:
    """What a map that is the same everywhere has, and a peak that is anywhere: the boxes' shares of the area."""
    targets, whole = _areas(target), float(side * side)
    none = np.zeros(len(target))
    if context is None:
        unknown = np.full(len(target), np.nan)
        return Measures(unknown, targets / whole, unknown, targets / whole, unknown, none)
    contexts = _areas(context)
    both, one, other = targets / (targets + contexts), targets / whole, contexts / whole
    return Measures(both, one, other, one, other, none)


def scaled(maps: NDArray[np.floating]) -> Floats:
    """What speaks for the class, from 0 to 1 in each map [...,H,W]; 0 where it is the same everywhere."""
    positive = np.maximum(np.asarray(maps, float), 0)
    low, high = (edge((-2, -1), keepdims=True) for edge in (positive.min, positive.max))
    found: Floats = (positive - low) / np.where(high > low, high - low, 1)
    return found


def _inside(maps: Floats, boxes: Ints) -> Floats:
    return np.array([one[y0:y1, x0:x1].sum() for one, (x0, y0, x1, y1) in zip(maps, boxes.tolist(), strict=True)])


def _areas(boxes: Ints) -> Floats:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1), float)


def _share(part: Floats, whole: Floats) -> Floats:
    """0 of nothing."""
    return part / np.where(whole > 0, whole, 1)
