"""The part of a DICOM header that pixels need, checked before anything is decoded.

pydicom's own messages quote values, and a value may be a patient's: errors here name the keyword only.
"""

import math
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from storage.errors import ImageError

# Only these are read, so that nothing else in the header can stop an image, or get out of it.
_TAGS = tuple(
    Tag(keyword)
    for keyword in (
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "FloatPixelPaddingValue",
        "FloatPixelPaddingRangeLimit",
        "DoubleFloatPixelPaddingValue",
        "DoubleFloatPixelPaddingRangeLimit",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "VOILUTSequence",
        "RescaleIntercept",
        "RescaleSlope",
        "ModalityLUTSequence",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "RedPaletteColorLookupTableDescriptor",
        "GreenPaletteColorLookupTableDescriptor",
        "BluePaletteColorLookupTableDescriptor",
        "RedPaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "SegmentedRedPaletteColorLookupTableData",
        "SegmentedGreenPaletteColorLookupTableData",
        "SegmentedBluePaletteColorLookupTableData",
        "PixelData",
        "FloatPixelData",
        "DoubleFloatPixelData",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
    )
)
_HEADER_BYTES = 64 << 20
_META_BYTES = 4096
_INFLATE_BYTES = 1 << 20
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
GRAY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "HSV")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels lie in the file, as declared."""

    keyword: str  # PixelData | FloatPixelData | DoubleFloatPixelData
    photometric: str
    frames: int
    rows: int
    columns: int
    samples: int  # 1 or 3
    allocated: int  # bits a sample
    stored: int  # bits of these that carry the value
    high: int  # the highest of these
    signed: bool

    @property
    def frame_bits(self) -> int:
        """Bits of one uncompressed frame; YBR_FULL_422 shares one colour between two pixels."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.allocated


def read_header(payload: bytes, pixels: int) -> Dataset:
    """The elements that pixels need, pixels included, of a DICOM file with or without preamble.

    Raises ImageError if the bytes do not parse, or inflate to more than `pixels` samples and a header need.
    """
    _refuse_inflation(payload, pixels * 8 + _HEADER_BYTES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            dataset = dcmread(BytesIO(payload), force=True, specific_tags=list(_TAGS))
        except MemoryError:
            raise  # the machine's fault, not the file's
        except Exception:
            raise ImageError("the DICOM data elements cannot be read: the file is damaged, or ends early") from None
    # pydicom warns of an end within an element of open length, and gives back an empty data set.
    if any(str(warning.message).startswith("End of file reached") for warning in caught):
        raise ImageError("the DICOM file ends early, in the middle of a data element")
    return dataset


def _refuse_inflation(payload: bytes, limit: int) -> None:
    """A deflated data set is inflated whole by pydicom; here it is first counted, piece by piece."""
    meta = payload[132:_META_BYTES]
    if str(DeflatedExplicitVRLittleEndian).encode() not in meta:
        return
    # File meta information starts with its own length: (0002,0000) UL, 12 bytes with the value.
    start = 144 + int.from_bytes(meta[8:12], "little")
    inflater, rest, inflated = zlib.decompressobj(-zlib.MAX_WBITS), payload[start:], 0
    while rest and not inflater.eof:
        try:
            inflated += len(inflater.decompress(rest, _INFLATE_BYTES))
        except zlib.error:
            raise ImageError("the deflated DICOM data set is damaged") from None
        rest = inflater.unconsumed_tail
        if inflated > limit:
            raise ImageError(f"the deflated DICOM data set inflates to more than {limit} bytes")


def read_layout(dataset: Dataset, pixels: int) -> Layout:
    """Raises ImageError for what is missing, impossible, or over `pixels` rows x columns x samples."""
    keyword = _pixel_keyword(dataset)
    photometric = str(value(dataset, "PhotometricInterpretation") or "").strip().upper()
    if photometric not in (*GRAY, PALETTE, *COLOURS):
        raise ImageError("PhotometricInterpretation in the header is missing, or none that can be shown")
    allocated = _within(dataset, "BitsAllocated", 1, 64)
    floating = keyword != "PixelData"
    stored = allocated if floating else _within(dataset, "BitsStored", 1, allocated)
    layout = Layout(
        keyword=keyword,
        photometric=photometric,
        frames=max(integer(dataset, "NumberOfFrames") or 1, 1),
        rows=_within(dataset, "Rows", 1, 65535),
        columns=_within(dataset, "Columns", 1, 65535),
        samples=_within(dataset, "SamplesPerPixel", 1, 4),
        allocated=allocated,
        stored=stored,
        high=min(max(integer(dataset, "HighBit") or 0, stored - 1), allocated - 1),
        signed=not floating and _within(dataset, "PixelRepresentation", 0, 1) == 1,
    )
    if layout.samples != (3 if photometric in COLOURS else 1):
        raise ImageError(f"SamplesPerPixel is {layout.samples}, which does not go with the header's {photometric}")
    if allocated not in (1, 8, 16, 32, 64):
        raise ImageError(f"BitsAllocated is {allocated}; 1, 8, 16, 32 and 64 can be read")
    if (size := layout.rows * layout.columns * layout.samples) > pixels:
        raise ImageError(f"a frame of {layout.rows} x {layout.columns} has {size} samples, over the cap of {pixels}")
    return layout


def value(dataset: Dataset, keyword: str) -> Any:
    """The element's value, or None where it is absent. Raises ImageError where it cannot be converted."""
    tag = _tag(keyword)
    if tag not in dataset:
        return None
    try:
        return dataset[tag].value
    except MemoryError:
        raise  # the machine's fault, not the file's
    except Exception:
        raise ImageError(f"{keyword} in the header cannot be read") from None


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """All values of a numeric element, () where it is absent or empty. Raises ImageError unless all are finite."""
    found = value(dataset, keyword)
    if found is None or found in ("", b""):
        return ()
    items = found if isinstance(found, MultiValue | list) else (found,)
    try:
        values = tuple(float(item) for item in items)
    except (TypeError, ValueError, OverflowError):
        raise ImageError(f"{keyword} in the header is not a number") from None
    if not all(math.isfinite(item) for item in values):
        raise ImageError(f"{keyword} in the header is not a finite number")
    return values


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value, or None where there is none."""
    return next(iter(numbers(dataset, keyword)), None)


def integer(dataset: Dataset, keyword: str) -> int | None:
    """A whole number, or None where it is absent. Raises ImageError for anything else."""
    values = numbers(dataset, keyword)
    if not values:
        return None
    if len(values) > 1 or not values[0].is_integer():
        raise ImageError(f"{keyword} in the header is not one whole number")
    return int(values[0])


@cache
def _tag(keyword: str) -> BaseTag:
    """By tag, pydicom finds out five times faster than by keyword that an element is not there."""
    return Tag(keyword)


def _within(dataset: Dataset, keyword: str, low: int, high: int) -> int:
    found = integer(dataset, keyword)
    if found is None:
        raise ImageError(f"{keyword} is missing from the header")
    if not low <= found <= high:
        raise ImageError(f"{keyword} is {found}; {low} to {high} is possible")
    return found


def _pixel_keyword(dataset: Dataset) -> str:
    found = [keyword for keyword in _PIXELS if _tag(keyword) in dataset]
    if not found and _tag("Rows") in dataset:
        raise ImageError("the header describes an image, and no pixel data follows: the file ends early, perhaps")
    if not found:
        raise ImageError("the DICOM file holds no pixels (a report, a plan, a waveform or a directory, perhaps)")
    if len(found) > 1:
        raise ImageError("the DICOM file holds pixels of several kinds; only one is allowed")
    return found[0]
