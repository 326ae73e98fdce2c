"""Frames of a DICOM file as they are shown: stored values, decompressed, through the whole display chain."""

from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
)

from storage.codestream import declared_size
from storage.dicom_header import COLOURS, GRAY, PALETTE, Layout, number, read_header, read_layout, value
from storage.errors import ImageError
from storage.grayscale import WindowChoice, read_display, read_modality
from storage.jpeg12 import decode_jpeg12
from storage.lookup import read_palette
from storage.quiet import quiet

Array = NDArray[Any]

# Untouched and not copied: padding may lie in the bits that pydicom would clear.
_AS_STORED: dict[str, Any] = {"correct_unused_bits": False, "view_only": True}


@dataclass(frozen=True, slots=True)
class DicomPixels:
    """One DICOM file, its header read once, its frames decoded one by one."""

    dataset: Dataset
    layout: Layout
    syntax: UID

    @classmethod
    @quiet("pydicom")
    def open(cls, payload: bytes, pixels: int) -> Self:
        """Raises ImageError for what no frame of can be shown; `pixels` caps rows x columns x samples."""
        dataset = read_header(payload, pixels)
        layout = read_layout(dataset, pixels)
        data = value(dataset, layout.keyword)
        if not isinstance(data, bytes) or not data:
            raise ImageError("the pixel data is empty")
        syntax = _transfer_syntax(dataset)
        if not syntax.is_encapsulated:
            _refuse_truncated(layout, len(data))
        return cls(dataset, layout, syntax)

    @quiet("pydicom")
    def frame(self, index: int, choice: WindowChoice) -> Array:
        """Gray [h,w] float32 in [0, 1], colour [h,w,3] uint8, uint16 (full range) or float32. Raises ImageError."""
        layout = self.layout
        stored, photometric = self._stored(index)
        if layout.photometric in COLOURS:
            return _rgb(stored, photometric, layout)
        if layout.photometric == PALETTE:
            return read_palette(self.dataset)(_value_bits(stored, layout, self.syntax))
        return read_display(self.dataset, index, choice).render(*self._gray(stored))

    @quiet("pydicom")
    def measured(self, index: int) -> NDArray[np.float32]:
        """A gray frame [h,w] in the modality's unit, NaN where padding says there is no image. Raises ImageError."""
        if self.layout.photometric not in GRAY:
            raise ImageError("a colour image; the slices of a volume are gray")
        values, padding = self._gray(self._stored(index)[0])
        with np.errstate(over="ignore"):  # said below
            measured: NDArray[np.float32] = read_modality(self.dataset, index)(values).astype(np.float32)
        if not np.isfinite(measured).all():
            raise ImageError("the rescale numbers in the header are too large to reckon with")
        if padding is not None:
            measured[padding] = np.nan
        return measured

    def _gray(self, stored: Array) -> tuple[Array, NDArray[np.bool_] | None]:
        """Stored values, and where there is no image: there, floats are 0."""
        values = _value_bits(stored, self.layout, self.syntax)
        padding = _padding(self.dataset, self.layout, stored, values)
        if padding is not None and values.dtype.kind == "f":
            values = np.where(padding, values.dtype.type(0), values)
        return values, padding

    def _stored(self, index: int) -> tuple[Array, str]:
        """The decompressed frame, and the colour space that it came out in (not always the declared one)."""
        layout = self.layout
        if not 0 <= index < layout.frames:
            raise ImageError(f"frame {index + 1} is asked for; the header says that there are {layout.frames}")
        if self.syntax.is_encapsulated:
            stream = self._stream(index)
            if self.syntax == JPEGExtended12Bit and layout.stored > 8 and layout.samples == 1:
                return decode_jpeg12(stream, layout.rows, layout.columns, layout.stored), layout.photometric
        try:
            array, properties = get_decoder(self.syntax).as_array(self.dataset, index=index, raw=True, **_AS_STORED)
        except MemoryError:
            raise
        except Exception:
            # The messages of decoders are long, and may quote the header.
            raise ImageError(
                f"the {_syntax_name(self.syntax)} pixel data cannot be decoded: "
                "it is damaged, ends early, or has a form that no installed decoder reads"
            ) from None
        return array, str(properties["photometric_interpretation"])

    def _stream(self, index: int) -> bytes:
        """The compressed frame. It may declare any size, and decoders allocate what it declares: refused if wrong."""
        try:
            offsets = [value(self.dataset, f"ExtendedOffsetTable{part}") for part in ("", "Lengths")]
            stream = get_frame(
                self.dataset.PixelData,
                index,
                number_of_frames=self.layout.frames,
                extended_offsets=tuple(offsets) if all(offsets) else None,
            )
        except MemoryError:
            raise  # the machine's fault, not the file's
        except Exception:
            raise ImageError(f"the compressed pixel data of frame {index + 1} cannot be found in the file") from None
        size = declared_size(stream)
        if size is not None and size != (self.layout.rows, self.layout.columns):
            raise ImageError(
                f"the compressed frame is {size[0]} x {size[1]}, "
                f"the header says {self.layout.rows} x {self.layout.columns}"
            )
        return stream


def _transfer_syntax(dataset: Dataset) -> UID:
    """The declared one, or what the elements themselves show. Raises ImageError if no decoder reads it."""
    meta = getattr(dataset, "file_meta", None)
    declared = value(meta, "TransferSyntaxUID") if meta is not None else None
    syntax = UID(declared) if declared else _apparent_syntax(dataset)
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise ImageError(f"no installed decoder reads the pixel data's transfer syntax: {_syntax_name(syntax)}")
    if declared:
        return syntax
    # pydicom takes the syntax from the file's meta information, which this file does not have.
    dataset.file_meta.TransferSyntaxUID = syntax
    return syntax


def _apparent_syntax(dataset: Dataset) -> UID:
    implicit, little = dataset.original_encoding
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise ImageError("the pixel data is compressed, and the header does not say how")
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _syntax_name(syntax: UID) -> str:
    # An unknown UID would be its own name, and is not ours to repeat.
    return syntax.name if syntax.type == "Transfer Syntax" else "unknown transfer syntax"


def _refuse_truncated(layout: Layout, length: int) -> None:
    expected = ceil(layout.frame_bits * layout.frames / 8)
    if length < expected:
        raise ImageError(f"the pixel data ends early: {length} of {expected} bytes are there")
    if layout.photometric == "YBR_FULL_422" and length >= expected * 3 // 2:
        raise ImageError("the header says YBR_FULL_422, and the pixel data has the length of another colour space")


def _value_bits(stored: Array, layout: Layout, syntax: UID) -> Array:
    """Values without the bits beside them, where old files keep overlays; in the machine's byte order."""
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    decoders_care = syntax in JPEG2000TransferSyntaxes or syntax in JPEGLSTransferSyntaxes
    if layout.keyword != "PixelData" or decoders_care or layout.allocated == layout.stored or layout.allocated == 1:
        return stored
    low, high = _bounds(layout)
    if layout.high == layout.stored - 1 and low <= stored.min() and stored.max() <= high:
        return stored
    unused_above = layout.allocated - 1 - layout.high
    # The shift to the left drops the bits above, the shift to the right those below, and keeps the sign.
    return (stored << unused_above) >> (layout.allocated - layout.stored)


def _padding(dataset: Dataset, layout: Layout, stored: Array, values: Array) -> NDArray[np.bool_] | None:
    """Where there is no image, or None where it is everywhere (PS3.3 C.7.5.1.1.2)."""
    prefix = layout.keyword.removesuffix("Data").removesuffix("Pixel")
    first = number(dataset, f"{prefix}PixelPaddingValue")
    last = number(dataset, f"{prefix}PixelPaddingRangeLimit")
    empty = None if values.dtype.kind in "iu" else ~np.isfinite(values)
    if empty is not None and not empty.any():
        empty = None
    if first is None:
        return empty
    ends = [_as_stored(end, layout) for end in (first, first if last is None else last)]
    low, high = min(ends), max(ends)
    # Padding that the value's bits cannot hold was written over the whole allocated word.
    fits = layout.keyword != "PixelData" or (_bounds(layout)[0] <= low and high <= _bounds(layout)[1])
    source = values if fits else stored
    padding = source == low if low == high else (source >= low) & (source <= high)
    if empty is not None:
        padding |= empty
    return padding if padding.any() else None


def _as_stored(end: float, layout: Layout) -> float:
    """Padding is often written as an unsigned word where pixels are signed, and the other way round."""
    if layout.keyword != "PixelData":
        return end
    words: int = 2**layout.allocated
    if layout.signed and end >= words // 2:
        return end - words
    return end + words if not layout.signed and end < 0 else end


def _bounds(layout: Layout) -> tuple[int, int]:
    """Least and greatest integer that the stored bits can hold."""
    if layout.signed:
        return -(2 ** (layout.stored - 1)), 2 ** (layout.stored - 1) - 1
    return 0, 2**layout.stored - 1


def _rgb(stored: Array, photometric: str, layout: Layout) -> Array:
    """RGB [h,w,3] over the full range of its type: uint8, uint16, or float32 for wider samples."""
    if photometric in ("YBR_FULL", "YBR_FULL_422") and stored.dtype == np.uint8:
        stored, photometric = convert_color_space(stored, "YBR_FULL", "RGB"), "RGB"
    if photometric != "RGB" or layout.signed:
        sign = "signed " if layout.signed else ""
        raise ImageError(f"{layout.allocated}-bit {sign}{photometric} pixels cannot be turned into RGB")
    top = 2**layout.stored - 1
    if layout.allocated == 8 and layout.stored == 8:
        return np.ascontiguousarray(stored)
    if layout.allocated <= 16:
        width = 8 if layout.stored <= 8 else 16
        wide = (stored & top).astype(np.uint32) * (2**width - 1)
        return np.ascontiguousarray((wide + top // 2) // top).astype(np.uint8 if width == 8 else np.uint16)
    return np.ascontiguousarray((stored & top).astype(np.float64) / top, dtype=np.float32)
