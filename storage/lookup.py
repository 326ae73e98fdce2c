"""DICOM lookup tables: modality, VOI and palette share one form (PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5-6)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from storage.dicom_header import numbers, value
from storage.errors import ImageError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class LookupTable:
    """Output for each input from `first` on; below and beyond, the first and the last entry hold.

    entries [n] unsigned; top is the greatest output the table may give (2 ** bits - 1).
    """

    first: int
    entries: Array
    top: int

    def __call__(self, values: Array) -> Array:
        positions = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(positions, 0, len(self.entries) - 1)]

    def extremes(self, values: Array) -> tuple[float, float]:
        outputs = self(values)
        return float(outputs.min()), float(outputs.max())


def lookup_table(source: Dataset, prefix: str) -> LookupTable:
    """The table in `<prefix>Descriptor` and `<prefix>Data`. Raises ImageError if they contradict each other."""
    descriptor = numbers(source, f"{prefix}Descriptor")
    if len(descriptor) != 3:
        raise ImageError(f"{prefix}Descriptor in the header does not have its three numbers")
    # Unsigned 16 bits hold the count, so that 0 means 65536; writers also store it as a signed number.
    count = int(descriptor[0]) % 65536 or 65536
    first, bits = int(descriptor[1]), int(descriptor[2])
    if not 1 <= bits <= 16:
        raise ImageError(f"{prefix}Descriptor in the header asks for {bits} bits; 1 to 16 are possible")
    entries = _entries(source, prefix, count)
    # Tables declare 16 bits over entries of one byte, and fewer bits than their 16-bit entries use.
    bits = min(bits, entries.dtype.itemsize * 8)
    return LookupTable(first, entries, 65535 if int(entries.max()) >= 2**bits else 2**bits - 1)


@dataclass(frozen=True, slots=True)
class Palette:
    """Red, green and blue for each input value."""

    red: LookupTable
    green: LookupTable
    blue: LookupTable

    def __call__(self, values: Array) -> Array:
        """[h,w] indices -> [h,w,3] uint8 or uint16, white = max."""
        tables = (self.red, self.green, self.blue)
        wide = max(table.top for table in tables) > 255
        top, kind = (65535, np.uint16) if wide else (255, np.uint8)
        low = min(table.first for table in tables)
        high = max(table.first + len(table.entries) - 1 for table in tables)
        levels = np.arange(low, high + 1)
        colours = np.stack([_scaled(table(levels), table.top, top) for table in tables], axis=-1).astype(kind)
        return colours[np.clip(values, low, high).astype(np.int64) - low]


def read_palette(dataset: Dataset) -> Palette:
    """The palette of a PALETTE COLOR image, plain or segmented. Raises ImageError if it is not all there."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        return _segmented_palette(dataset)
    return Palette(*(lookup_table(dataset, f"{colour}PaletteColorLookupTable") for colour in ("Red", "Green", "Blue")))


def _segmented_palette(dataset: Dataset) -> Palette:
    """pydicom expands the segments; asked for every index in turn, it gives the whole table."""
    descriptor = numbers(dataset, "RedPaletteColorLookupTableDescriptor")
    try:
        count, first, bits = (int(item) for item in descriptor)
        entries = apply_color_lut(np.arange(first, first + (count % 65536 or 65536)), dataset)
    except MemoryError:
        raise  # the machine's fault, not the file's
    except Exception:
        raise ImageError("the segmented colour palette in the header cannot be read") from None
    return Palette(*(LookupTable(first, entries[:, column], 2**bits - 1) for column in range(3)))


def _scaled(entries: Array, top: int, full: int) -> Array:
    return (entries.astype(np.int64) * full + top // 2) // top


def _entries(source: Dataset, prefix: str, count: int) -> Array:
    """[count] uint8 or uint16, as the table is stored."""
    data = value(source, f"{prefix}Data")
    if isinstance(data, bytes):
        width = 1 if count <= len(data) < 2 * count else 2
        big = source.original_encoding[1] is False
        entries = np.frombuffer(data, dtype=f"{'>' if big and width == 2 else '<'}u{width}", count=len(data) // width)
    else:
        entries = (np.array(numbers(source, f"{prefix}Data"), dtype=np.int64) & 0xFFFF).astype(np.uint16)
    if len(entries) < count:
        raise ImageError(f"{prefix}Data in the header has {len(entries)} of {count} entries")
    return entries[:count].astype(entries.dtype.newbyteorder("="))
