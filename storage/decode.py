"""Bytes of an image file to pixels: the one door to every format."""

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from storage.decode_options import DEFAULT_OPTIONS, DecodeOptions
from storage.dicom_pixels import DicomPixels
from storage.dicom_volume import decode_series
from storage.errors import ImageError
from storage.nifti import decode_nifti
from storage.raster import RasterPixels
from storage.volumes import Volume

__all__ = ["DecodeOptions", "Volume", "decode_frames", "decode_image", "decode_volume"]

Array = NDArray[Any]


def decode_image(payload: bytes, *, format: str, frame: int = 0, options: DecodeOptions = DEFAULT_OPTIONS) -> Array:
    """One frame of a file; format as in CatalogueRow: dicom | png | jpeg | tiff, frame counts from 0.

    Returns [h,w] or RGB [h,w,3], C-contiguous: uint8, uint16 (both over their full range, white = max) or
    float32 in [0, 1] (DICOM grayscale, after modality, VOI and inversion). Raises ImageError with the reason.
    """
    image = next(decode_frames(payload, format=format, frames=(frame,), options=options))
    if isinstance(image, ImageError):
        raise image
    return image


def decode_frames(
    payload: bytes, *, format: str, frames: Sequence[int], options: DecodeOptions = DEFAULT_OPTIONS
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


def decode_volume(files: Sequence[bytes], *, format: str, options: DecodeOptions = DEFAULT_OPTIONS) -> Volume:
    """One volume: of format nifti one file, of dicom a multi-frame file or all slices of a series in any order.

    Raises ImageError with the reason.
    """
    if format == "nifti" and len(files) == 1:
        return decode_nifti(files[0], options)
    if format == "dicom":
        return decode_series(files, options)
    raise ValueError(f"no volume of {len(files)} files in format {format!r}; expected dicom, or nifti in one file")


def _open(payload: bytes, format: str, options: DecodeOptions) -> DicomPixels | RasterPixels:
    if format == "dicom":
        return DicomPixels.open(payload, options.pixels)
    if format in ("png", "jpeg", "tiff"):
        return RasterPixels.open(payload, format, options.pixels)
    raise ValueError(f"unknown format {format!r}; expected dicom, png, jpeg or tiff")
