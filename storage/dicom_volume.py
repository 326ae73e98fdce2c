"""A DICOM series, or an enhanced multi-frame file, as one volume: assembled by position, never by name or number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from storage.decode_options import DecodeOptions
from storage.dicom_header import numbers
from storage.dicom_pixels import DicomPixels
from storage.errors import ImageError
from storage.grayscale import Rescale, full_range, macro, read_display, read_modality, render_volume
from storage.volumes import Axes, Volume, refuse_large, refuse_mixed, stack_slices

Array = NDArray[Any]

# Where each lies in the functional groups of an enhanced file (PS3.3 C.7.6.16.2).
_POSITION = ("PlanePositionSequence", "ImagePositionPatient", 3)
_ORIENTATION = ("PlaneOrientationSequence", "ImageOrientationPatient", 6)
_SPACING = ("PixelMeasuresSequence", "PixelSpacing", 2)


@dataclass(frozen=True, slots=True)
class _Slice:
    """One slice, not yet decoded, and where it lies; NaN where the header does not say."""

    pixels: DicomPixels
    frame: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


def decode_series(files: Sequence[bytes], options: DecodeOptions) -> Volume:
    """The slices in any order, or one multi-frame file. Raises ImageError with the reason why there is no volume.

    Each slice goes through its own modality LUT or rescale, the volume through one window: that of the middle slice.
    """
    slices = [found for payload in files for found in _slices(payload, options)]
    _refuse_different(slices)
    first = slices[0]
    orientation = np.array(first.orientation)
    stack = stack_slices(np.array([one.position for one in slices]), orientation, uneven=options.uneven)
    rows, columns = first.pixels.layout.rows, first.pixels.layout.columns
    refuse_large((stack.depth, rows, columns), options.voxels)
    axes = Axes.of(stack.steps(orientation, np.array(first.spacing)))
    measured = np.empty((len(slices), rows, columns), np.float32)
    for place, index in enumerate(stack.order):
        try:
            measured[place] = slices[index].pixels.measured(slices[index].frame)
        except ImageError as error:
            raise ImageError(f"slice {place + 1} of {len(slices)}: {error}") from None
    values = axes.turned(stack.resampled(measured))
    return Volume(_shown(values, slices[stack.order[len(slices) // 2]], options), axes.turned_spacing)


def _slices(payload: bytes, options: DecodeOptions) -> Iterator[_Slice]:
    pixels = DicomPixels.open(payload, options.pixels)
    for frame in range(pixels.layout.frames):
        yield _Slice(
            pixels,
            frame,
            _place(pixels, frame, *_POSITION),
            _place(pixels, frame, *_ORIENTATION),
            _place(pixels, frame, *_SPACING),
        )


def _place(pixels: DicomPixels, frame: int, sequence: str, keyword: str, count: int) -> tuple[float, ...]:
    """What the header says of one frame; what it says of the file says nothing of the frames of a multi-frame file."""
    source: Dataset = macro(pixels.dataset, frame, sequence)
    if source is pixels.dataset and pixels.layout.frames > 1:
        raise ImageError(f"its {pixels.layout.frames} frames do not say where they lie ({sequence})")
    found = numbers(source, keyword)
    return found if len(found) == count else (np.nan,) * count


def _refuse_different(slices: Sequence[_Slice]) -> None:
    refuse_mixed(
        np.array([(one.pixels.layout.rows, one.pixels.layout.columns) for one in slices]),
        np.array([one.orientation for one in slices]),
        np.array([one.spacing for one in slices]),
    )
    if len({one.pixels.layout.photometric for one in slices}) > 1:
        raise ImageError("its slices have 2 photometric interpretations")
    if len({type(read_modality(one.pixels.dataset, one.frame)) for one in slices}) > 1:
        raise ImageError("some of its slices have a modality table, others have not")


def _shown(values: NDArray[np.float32], middle: _Slice, options: DecodeOptions) -> NDArray[np.float32]:
    """Modality values [d,h,w] through one window -> [d,h,w,1]. `range` is taken as given: it is not inverted."""
    if options.range_window is not None:
        return render_volume(values, Rescale(), options.range_window, inverted=False)
    display = read_display(middle.pixels.dataset, middle.frame, options.window)
    if np.isnan(values).all():
        return np.zeros((*values.shape, 1), np.float32)
    window = display.voi or full_range(float(np.nanmin(values)), float(np.nanmax(values)))
    return render_volume(values, Rescale(), window, inverted=display.inverted)
