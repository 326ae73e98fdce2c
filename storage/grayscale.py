"""From stored gray values to what a reader sees: modality, values of interest, inversion.

DICOM PS3.3 C.11.1 (modality), C.11.2 (values of interest, VOI), C.7.6.16.2 (the same per frame, in
enhanced multi-frame images).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.dicom_header import number, numbers, value
from storage.errors import ImageError
from storage.lookup import LookupTable, lookup_table

Array = NDArray[Any]
_PIECE = 1 << 16  # pixels
WindowChoice = int | Literal["widest", "narrowest"]


@dataclass(frozen=True, slots=True)
class Rescale:
    """Stored values to the modality's unit (Hounsfield, optical density): slope x + intercept."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: Array) -> Array:
        return values.astype(np.float64) * self.slope + self.intercept

    def extremes(self, values: Array) -> tuple[float, float]:
        ends = self(np.array([values.min(), values.max()]))
        return float(ends.min()), float(ends.max())


@dataclass(frozen=True, slots=True)
class Window:
    """Modality values to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    A LINEAR window narrower than 1 has no meaning in the standard; it is taken as LINEAR_EXACT.
    """

    center: float
    width: float
    function: str = "LINEAR"

    def __call__(self, values: Array) -> Array:
        if self.function == "SIGMOID":
            # exp overflows to inf far below the window, which is the right limit: 1 / inf = 0.
            with np.errstate(over="ignore"):
                return 1.0 / (1.0 + np.exp(-4.0 * (values - self.center) / self.width))
        if self.function == "LINEAR_EXACT" or self.width < 1.0:
            return _ramp(values, self.center, self.width)
        return _ramp(values, self.center - 0.5, self.width - 1.0)


@dataclass(frozen=True, slots=True)
class Display:
    """How one frame's stored values are shown. voi None: from the darkest to the brightest value."""

    modality: Rescale | LookupTable
    voi: Window | LookupTable | None
    inverted: bool

    def render(self, stored: Array, padding: Array | None) -> NDArray[np.float32]:
        """stored [h,w] any real type, padding [h,w] bool or None -> [h,w] in [0, 1]; padding is 0 (dark)."""
        shown = stored if padding is None else stored[~padding]
        if shown.size == 0:
            return np.zeros(stored.shape, np.float32)
        voi = self.voi or full_range(*self.modality.extremes(shown))
        image = self._mapped(stored, voi)
        if padding is not None:
            image[padding] = 0.0
        return image

    def _mapped(self, stored: Array, voi: Window | LookupTable) -> NDArray[np.float32]:
        low, high = stored.min(), stored.max()
        if stored.dtype.kind in "iu" and int(high) - int(low) < stored.size:
            # Fewer values than pixels: compute each value once, then look the pixels up.
            levels = np.arange(int(low), int(high) + 1)
            return _looked_up(_shown(self.modality(levels), voi, self.inverted), stored, low)
        return _shown(self.modality(stored), voi, self.inverted)


def full_range(low: float, high: float) -> Window:
    """The window from the darkest to the brightest value."""
    if low == high:
        # A flat image has no contrast to stretch; all of it is as dark as the range gets.
        return Window(high + 0.5, 1.0, "LINEAR_EXACT")
    return Window((low + high) / 2.0, high - low, "LINEAR_EXACT")


def render_volume(
    values: Array, modality: Rescale, voi: Window | LookupTable, *, inverted: bool
) -> NDArray[np.float32]:
    """values [d,h,w] any real type, NaN where there is no image -> [d,h,w,1] in [0,1]; no image is 0 (dark)."""
    volume = np.empty((*values.shape, 1), np.float32)
    for plane, shown in zip(values, volume[..., 0], strict=True):
        empty = np.isnan(plane) if plane.dtype.kind == "f" else None
        present = plane if empty is None else np.where(empty, 0, plane)
        shown[...] = _shown(modality(present), voi, inverted)
        if empty is not None:
            shown[empty] = 0.0
    return volume


def _shown(values: Array, voi: Window | LookupTable, inverted: bool) -> NDArray[np.float32]:
    """Modality values to [0, 1], of any shape."""
    shown = voi(values)
    if isinstance(voi, LookupTable):
        shown = shown / voi.top
    if np.isnan(shown).any():
        raise ImageError("the rescale and window numbers in the header are too large to reckon with")
    if inverted:
        shown = 1.0 - shown
    return np.clip(shown, 0.0, 1.0).astype(np.float32)


def read_display(dataset: Dataset, frame: int, choice: WindowChoice) -> Display:
    """The chain of one frame. A frame's own functional groups win over shared ones, those over the image.

    Raises ImageError for numbers and tables that cannot be read.
    """
    return Display(
        modality=read_modality(dataset, frame),
        voi=_voi(macro(dataset, frame, "FrameVOILUTSequence"), choice),
        inverted=value(dataset, "PhotometricInterpretation") == "MONOCHROME1",
    )


def read_modality(dataset: Dataset, frame: int) -> Rescale | LookupTable:
    """From stored values to the modality's unit. Raises ImageError for numbers and tables that cannot be read."""
    source = macro(dataset, frame, "PixelValueTransformationSequence")
    if tables := value(source, "ModalityLUTSequence"):
        return lookup_table(tables[0], "LUT")
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    if slope == 0.0:
        raise ImageError("RescaleSlope is 0, which would erase the image")
    return Rescale(1.0 if slope is None else slope, intercept or 0.0)


def _voi(source: Dataset, choice: WindowChoice) -> Window | LookupTable | None:
    """A table is preferred over windows, unless windows are chosen by width. Impossible windows do not count."""
    tables = list(value(source, "VOILUTSequence") or ())
    windows = list(_windows(source))
    if choice in ("widest", "narrowest"):
        if windows:
            pick = max if choice == "widest" else min
            return pick(windows, key=lambda window: window.width)
        return lookup_table(tables[0], "LUT") if tables else None
    if tables:
        return lookup_table(tables[_within(choice, len(tables))], "LUT")
    return windows[_within(choice, len(windows))] if windows else None


def _windows(source: Dataset) -> Iterator[Window]:
    function = str(value(source, "VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError("VOILUTFunction is none of LINEAR, LINEAR_EXACT and SIGMOID")
    centers, widths = numbers(source, "WindowCenter"), numbers(source, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        # Some writers put 0 for "no window"; no viewer applies it.
        if width > 0.0:
            yield Window(center, width, function)


def _within(index: Any, count: int) -> int:
    """An archive mixes images with one and with several windows: the last is taken where there are fewer."""
    return int(np.clip(index, 0, count - 1))


def macro(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """The functional group of a frame of an enhanced image, its own or the shared one; else the data set itself."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = value(dataset, groups)
        if items and index < len(items) and (group := value(items[index], keyword)):
            found: Dataset = group[0]
            return found
    return dataset


def _ramp(values: Array, center: float, width: float) -> Array:
    if width == 0.0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _looked_up(table: NDArray[np.float32], stored: Array, low: Any) -> NDArray[np.float32]:
    """table[stored - low], in pieces: NumPy widens indices to 64 bits, eight times the size of the image."""
    image = np.empty(stored.shape, np.float32)
    pixels, shown = stored.reshape(-1), image.reshape(-1)
    for start in range(0, stored.size, _PIECE):
        piece = slice(start, start + _PIECE)
        # Signed differences may wrap around; read as unsigned, they are right.
        places = (pixels[piece] - low).view(f"u{stored.dtype.itemsize}")
        np.take(table, places, out=shown[piece], mode="clip")
    return image
