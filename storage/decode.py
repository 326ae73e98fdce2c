"""Bytes of an image file to pixels: the one door to every format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from storage.dicom_pixels import DicomPixels
from storage.errors import ImageError
from storage.grayscale import WindowChoice
from storage.raster import RasterPixels

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """window: which of several VOI windows, by index or by width; pixels: rows x columns x samples at most."""

    window: WindowChoice = 0
    pixels: int = 100_000_000


def decode_image(payload: bytes, *, format: str, frame: int = 0, options: DecodeOptions = DecodeOptions()) -> Array:
    """One frame of a file; format as in CatalogueRow: dicom | png | jpeg | tiff, frame counts from 0.

    Returns [h,w] or RGB [h,w,3], C-contiguous: uint8, uint16 (both over their full range, white = max) or
    float32 in [0, 1] (DICOM grayscale, after modality, VOI and inversion). Raises ImageError with the reason.
    """
    image = next(decode_frames(payload, format=format, frames=(frame,), options=options))
    if isinstance(image, ImageError):
        raise image
    return image


def decode_frames(
    payload: bytes, *, format: str, frames: Sequence[int], options: DecodeOptions = DecodeOptions()
) -> Iterator[Array | ImageError]:
    """Several frames of a file in the order asked for, its header read once.

    A frame that cannot be had is an ImageError in its place; one that concerns the whole file comes for each.
    """
    try:
        opened = _open(payload, format, options)
    except ImageError as error:
        yield from (error for _ in frames)
        return
    for frame in frames:
        try:
            yield opened.frame(frame, options.window) if isinstance(opened, DicomPixels) else opened.frame(frame)
        except ImageError as error:
            yield error


def _open(payload: bytes, format: str, options: DecodeOptions) -> DicomPixels | RasterPixels:
    if format == "dicom":
        return DicomPixels.open(payload, options.pixels)
    if format in ("png", "jpeg", "tiff"):
        return RasterPixels.open(payload, format, options.pixels)
    raise ValueError(f"unknown format {format!r}; expected dicom, png, jpeg or tiff")
