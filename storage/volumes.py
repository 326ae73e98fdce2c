"""Where slices lie in the patient, and whether they make a volume: geometry on plain arrays.

Positions and directions are those of DICOM's patient (PS3.3 C.7.6.2.1.1), in mm: x to the left, y to the back, z to
the head. A decoded volume [d,h,w] has d from feet to head, h from front to back, w from right to left.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from storage.errors import ImageError

Array = NDArray[Any]
Uneven = Literal["reject", "resample"]

# Of the median gap: what a gap may differ by, and what a slice may be shifted sideways. Of a direction: what two may
# be off the right angle.
_TOLERANCE = 0.01
# What the directions (cosines) and the pixel spacings (relative) of two slices of a volume may differ by.
_SAME = 1e-3
# Of the mean gap: below this, two slices lie at one position.
_NO_GAP = 0.01
_ROUNDING = 1e-6  # mm
_FAR = 1e6  # mm: no patient is so long
_MOST_KINDS = 9
# A volume that is resampled has at most this many times the slices that were measured.
_MOST_ADDED = 2


@dataclass(frozen=True, slots=True)
class Volume:
    """A decoded volume: pixels [d,h,w,1] float32 in [0,1], C-contiguous; spacing in mm along d, h and w."""

    pixels: NDArray[np.float32]
    spacing: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices in their order along the normal. order [n]: which slice is at each place; heights [n] mm, ascending."""

    order: NDArray[np.intp]
    heights: NDArray[np.float64]
    gap: float  # median, mm
    normal: NDArray[np.float64]
    even: bool

    @property
    def depth(self) -> int:
        """Slices of the volume, with those that resampling adds."""
        if self.even:
            return len(self.heights)
        return int((self.heights[-1] - self.heights[0]) / self.gap + _TOLERANCE) + 1

    def resampled(self, values: Array) -> Array:
        """values [n,h,w] in order -> [depth,h,w], linear between neighbours; as they are where even."""
        if self.even:
            return values
        heights = self.heights[0] + self.gap * np.arange(self.depth)
        above = np.clip(np.searchsorted(self.heights, heights, side="right"), 1, len(self.heights) - 1)
        below = above - 1
        share = (heights - self.heights[below]) / (self.heights[above] - self.heights[below])
        result = np.empty((len(heights), *values.shape[1:]), values.dtype)
        for place, weight in enumerate(np.clip(share, 0.0, 1.0)):
            lower, upper = values[below[place]], values[above[place]]
            # A weight of 0 leaves the slice as it is, also where the other one has no image (NaN).
            result[place] = lower if weight == 0 else upper if weight == 1 else lower + (upper - lower) * weight
        return result

    def steps(self, orientation: Array, spacing: Array) -> Array:
        """[3,3]: columns are one step to the next slice, row and column. spacing: mm between rows, and columns."""
        row, column = (one / np.linalg.norm(one) for one in np.asarray(orientation, np.float64).reshape(2, 3))
        return np.stack([self.normal * self.gap, column * spacing[0], row * spacing[1]], axis=1)


def stack_slices(positions: Array, orientation: Array, *, uneven: Uneven) -> Stack:
    """Order slices of one orientation by position. positions [n,3], orientation [6]: row, then column cosines.

    Raises ImageError when they make no volume: one slice, doubled positions, a tilt; and, unless `uneven` is
    resample, missing slices and uneven gaps; then, when more slices are missing than there are. Gaps may differ by
    1 % of their median.
    """
    count = len(positions)
    if count < 2:
        raise ImageError("a series of one slice, which is no volume")
    if not (np.abs(positions) < _FAR).all():
        raise ImageError("its slices do not all say where they lie in the patient (ImagePositionPatient)")
    normal = _normal(orientation)
    heights = np.asarray(positions, np.float64) @ normal
    order = np.argsort(heights, kind="stable")
    heights = heights[order]
    gaps = np.diff(heights)
    present = gaps > max(_NO_GAP * gaps.mean(), _ROUNDING)
    if not present.all():
        _refuse_doubled(gaps, present)
    gap = float(np.median(gaps))
    _refuse_shifted(np.diff(positions[order], axis=0), gaps, normal)
    even = bool((np.abs(gaps - gap) <= _TOLERANCE * gap).all())
    if not even and uneven == "reject":
        raise ImageError(_uneven(gaps, gap))
    stack = Stack(order, heights, gap, normal, even)
    if stack.depth > _MOST_ADDED * count:
        raise ImageError(
            f"{stack.depth - count} of {stack.depth} slices would be interpolated, more than there are: "
            f"{_widest(gaps, gap)}"
        )
    return stack


def refuse_mixed(sizes: Array, orientations: Array, spacings: Array) -> None:
    """Raise ImageError unless all slices have one size [n,2], orientation [n,6] and pixel spacing [n,2]."""
    if (kinds := _kinds(sizes, 0.0)) > 1:
        raise ImageError(f"its slices have {_many(kinds)} sizes in pixels")
    if not (np.abs(orientations) < 2.0).all():
        raise ImageError("its slices do not all say how they are turned (ImageOrientationPatient)")
    if (kinds := _kinds(orientations, _SAME)) > 1:
        raise ImageError(f"its slices have {_many(kinds)} orientations (a scout among them?)")
    if not ((spacings > 0) & (spacings < _FAR)).all():
        raise ImageError("its slices do not all give their PixelSpacing")
    if (kinds := _kinds(np.log(spacings), _SAME)) > 1:
        raise ImageError(f"its slices have {_many(kinds)} pixel spacings")


@dataclass(frozen=True, slots=True)
class Axes:
    """How the axes of a stored array lie among those of a decoded volume.

    turns [3,2]: by stored axis, the volume's axis that it is closest to, and 1 or -1 for its direction;
    spacing: mm a step along each stored axis.
    """

    turns: Array
    spacing: tuple[float, ...]

    @classmethod
    def of(cls, steps: Array) -> Self:
        """steps [3,3]: column a is where one step along stored axis a leads, mm. Raises ImageError if sheared."""
        from nibabel.orientations import io_orientation

        usable = bool((np.abs(steps) < _FAR).all())
        lengths = np.linalg.norm(steps, axis=0) if usable else np.zeros(3)
        if not (lengths > 0).all():
            raise ImageError("the header gives no usable directions of its axes")
        directions = steps / lengths
        if (np.abs(directions.T @ directions - np.eye(3)) > _TOLERANCE).any():
            raise ImageError("the volume is sheared: its axes do not stand at right angles to each other")
        affine = np.eye(4)
        affine[:3, :3] = directions[::-1]  # z, y, x, as the axes of a decoded volume
        return cls(io_orientation(affine), tuple(float(length) for length in lengths))

    def turned(self, values: Array) -> Array:
        """The stored array with its axes as a decoded volume has them: a view."""
        from nibabel.orientations import apply_orientation

        turned: Array = apply_orientation(values, self.turns)
        return turned

    def sizes(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """(d, h, w) of a stored array's shape."""
        return tuple(stored[axis] for axis in np.argsort(self.turns[:, 0]))

    @property
    def turned_spacing(self) -> tuple[float, ...]:
        """mm along d, h, w."""
        return tuple(self.spacing[axis] for axis in np.argsort(self.turns[:, 0]))


def refuse_large(sizes: tuple[int, ...], voxels: int) -> None:
    """Raise ImageError for a volume of more than `voxels`."""
    if int(np.prod(sizes, dtype=object)) > voxels:
        shape = " x ".join(map(str, sizes))
        raise ImageError(f"a volume of {shape} voxels, more than the {voxels} allowed (archive.caps.voxels)")


def _normal(orientation: Array) -> NDArray[np.float64]:
    row, column = np.asarray(orientation, np.float64).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(abs(length - 1.0) <= _TOLERANCE for length in lengths) or abs(row @ column) > _TOLERANCE:
        raise ImageError("ImageOrientationPatient in the header is not two directions at right angles")
    normal = np.cross(row, column)
    unit: NDArray[np.float64] = normal / np.linalg.norm(normal)
    return unit


def _refuse_doubled(gaps: Array, present: Array) -> None:
    count, doubled = len(gaps) + 1, int((~present).sum())
    if doubled == count - 1:
        raise ImageError(f"its {count} slices all lie at one position along their normal")
    first = int(np.flatnonzero(~present)[0]) + 1
    raise ImageError(
        f"{_slices(doubled)} doubled of {count}: slices {first} and {first + 1} lie at one position "
        "(several acquisitions, or copies of files?)"
    )


def _refuse_shifted(steps: Array, gaps: Array, normal: Array) -> None:
    """Each slice must lie straight above the one before; steps [n-1,3] and gaps [n-1] from one to the next."""
    shifts = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    slopes = shifts / gaps
    if (slopes <= _TOLERANCE).all():
        return
    if np.median(slopes) > _TOLERANCE:
        angle = np.degrees(np.arctan(np.median(slopes)))
        raise ImageError(f"its slices are stacked at {angle:.1f} degrees to their normal (gantry tilt)")
    worst = int(slopes.argmax())
    raise ImageError(f"slices {worst + 1} and {worst + 2} are shifted sideways by {shifts[worst]:.2f} mm")


def _uneven(gaps: Array, gap: float) -> str:
    """What is wrong with the gaps, in numbers."""
    ratios = gaps / gap
    whole = np.rint(ratios)
    if (np.abs(ratios - whole) <= _TOLERANCE * np.maximum(whole, 1)).all() and (whole >= 1).all():
        missing = int(whole.sum()) - len(gaps)
        found = f"{_slices(missing)} missing of {len(gaps) + 1 + missing}: {_widest(gaps, gap)}"
    else:
        found = f"uneven spacing: gaps of {gaps.min():.2f} to {gaps.max():.2f} mm, {gap:.2f} mm in the median"
    return f"{found}. archive.uneven: resample interpolates"


def _widest(gaps: Array, gap: float) -> str:
    worst = int(gaps.argmax())
    return f"a gap of {gaps[worst] / gap:.1f} x the spacing between slices {worst + 1} and {worst + 2}"


def _kinds(values: Array, tolerance: float) -> int:
    """How many different rows there are; counting ends at _MOST_KINDS."""
    kinds, left = 0, values
    while len(left) and kinds < _MOST_KINDS:
        left = left[(np.abs(left - left[0]) > tolerance).any(axis=1)]
        kinds += 1
    return kinds


def _many(kinds: int) -> str:
    return f"{kinds} or more" if kinds == _MOST_KINDS else str(kinds)


def _slices(count: int) -> str:
    return f"{count} slice" if count == 1 else f"{count} slices"
