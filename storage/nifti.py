"""NIfTI files: one volume in one file, .nii or .nii.gz. Through nibabel, which is loaded when the first one is met."""

import gzip
import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storage.decode_options import DecodeOptions
from storage.errors import ImageError
from storage.grayscale import Rescale, full_range, render_volume
from storage.summary import Header
from storage.volumes import Axes, Volume, refuse_large

Array = NDArray[Any]

_GZIP = b"\x1f\x8b"
_START_BYTES = 544  # no header is longer
_PACKED_START = 64 << 10  # bytes of a packed file: more than its header takes
_LARGEST_LABEL = (1 << 31) - 1
# sizeof_hdr of NIfTI-1 and NIfTI-2, and where each has its magic.
_MAGIC_AT = {348: 344, 540: 4}
_PAIRS = (b"ni1", b"ni2")
_SINGLES = (b"n+1", b"n+2")
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_RATIO_FLOOR = 1 << 20  # below this size no ratio is absurd
_TURNED_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI counts x to the right and y to the front


def is_nifti(head: bytes) -> bool:
    """Whether a file starting with these bytes is NIfTI, packed by gzip or not; the header of a pair counts."""
    return _magic(_unpacked_start(head)) is not None


def summarise_nifti(head: bytes) -> Header:
    """The header of the file that starts with these bytes. Raises ImageError when it holds no volume."""
    layout = _Layout.read(_unpacked_start(head))
    depth, height, width = layout.axes.sizes(layout.shape)
    return Header(
        format="nifti",
        depth=depth,
        height=height,
        width=width,
        channels=1,
        bits=layout.dtype.itemsize * 8,
        spacing=layout.axes.turned_spacing,
        unpacked=layout.length if head.startswith(_GZIP) else 0,
    )


def decode_nifti(payload: bytes, options: DecodeOptions) -> Volume:
    """Raises ImageError for what is damaged, over the caps, or not a number."""
    layout = _Layout.read(_unpacked_start(payload[:_PACKED_START]))
    refuse_large(layout.axes.sizes(layout.shape), options.voxels)
    stored = _voxels(payload, layout, options)
    if stored.dtype.kind == "f" and (odd := stored.size - int(np.isfinite(stored).sum())):
        raise ImageError(f"{odd} of its voxels are not numbers (NaN or infinite)")
    values = layout.axes.turned(stored)
    with np.errstate(over="ignore"):  # said below
        low, high = layout.rescale.extremes(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("scl_slope and scl_inter in the header make numbers that are too large to reckon with")
    window = options.range_window or full_range(low, high)
    pixels = render_volume(values, layout.rescale, window, inverted=False)
    return Volume(pixels, layout.axes.turned_spacing)


def read_label_volume(payload: bytes) -> tuple[NDArray[np.int32], tuple[float, ...]]:
    """Labels [d,h,w] of an atlas and their spacing in mm, turned as decoded volumes are.

    However small it was packed: labels repeat. Raises ImageError for a damaged file and for voxels that are no whole
    numbers from 0.
    """
    start = payload[:_PACKED_START]
    if not is_nifti(start):
        raise ImageError("no NIfTI file; expected a label volume, .nii or .nii.gz")
    layout = _Layout.read(_unpacked_start(start))
    values = layout.rescale(layout.axes.turned(_voxels(payload, layout, DecodeOptions(ratio=math.inf))))
    if not ((values >= 0) & (values <= _LARGEST_LABEL) & (values == np.rint(values))).all():
        raise ImageError("its voxels are not all whole numbers from 0; expected the number of a region, or 0")
    return values.astype(np.int32), layout.axes.turned_spacing


def refuse_bomb(unpacked: int, packed: int, *, file_bytes: int, ratio: float) -> None:
    """Raise ImageError for a packed file that declares more bytes than the caps allow."""
    if unpacked > file_bytes:
        raise ImageError(
            f"it unpacks to {unpacked} bytes, more than the {file_bytes} allowed (archive.caps.file_bytes)"
        )
    if unpacked > _RATIO_FLOOR and unpacked > ratio * packed:
        raise ImageError(
            f"it unpacks to more than {ratio:g} times its size, like a bomb; archive.caps.ratio allows more"
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a header declares. shape: stored axes, the first one fastest."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    rescale: Rescale
    axes: Axes

    @property
    def length(self) -> int:
        """Bytes of the unpacked file, up to the last voxel."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def read(cls, start: bytes) -> Self:
        """From the unpacked start of a file. Raises ImageError."""
        header = _header(start)
        shape = _declared(header.get_data_shape, "size")
        if not shape or min(shape) < 1:
            raise ImageError("the NIfTI header declares a volume without voxels")
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) > 3:
            raise ImageError(f"{math.prod(shape[3:])} volumes in one file (time points, perhaps); expected one")
        if len(shape) < 3 or min(shape) < 2:
            raise ImageError("a single slice in a NIfTI file, which is no volume")
        dtype = _declared(header.get_data_dtype, "type of voxel")
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            kind = {"c": "complex numbers", "V": "colours"}.get(dtype.kind, "of a type that this does not read")
            raise ImageError(f"its voxels are {kind}; expected integers or floats of up to 64 bits")
        offset = _declared(header.get_data_offset, "place of its voxels")
        if offset < len(header.binaryblock):
            raise ImageError("the NIfTI header gives no usable place of its voxels")
        slope, intercept = _declared(header.get_slope_inter, "scale")
        rescale = Rescale(1.0 if slope is None else slope, intercept or 0.0)
        return cls(tuple(map(int, shape)), dtype, offset, rescale, _axes(header))


def _axes(header: Any) -> Axes:
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        raise ImageError("its header does not say how it lies in the patient (neither sform nor qform)")
    affine = _declared(header.get_best_affine, "orientation")
    unit = _declared(header.get_xyzt_units, "unit")[0]
    return Axes.of(_TURNED_TO_LPS @ affine[:3, :3] * _MILLIMETRES.get(unit, 1.0))


def _header(start: bytes) -> Any:
    """nibabel's view of the header, unmended."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    magic = _magic(start)
    if magic in _PAIRS:
        raise ImageError("the header of a NIfTI pair (.hdr and .img); one .nii or .nii.gz file would hold both")
    kind: Any
    kind, size = (Nifti1Header, 348) if magic == _SINGLES[0] else (Nifti2Header, 540)
    return _declared(lambda: kind(start[:size], check=False), "header")


def _declared(read: Callable[[], Any], what: str) -> Any:
    """What nibabel makes of a part of the header; its own words may quote values."""
    try:
        return read()
    except MemoryError:
        raise
    except Exception:
        raise ImageError(f"the NIfTI header is damaged: its {what} cannot be read") from None


def _magic(start: bytes) -> bytes | None:
    for order in ("little", "big"):
        place = _MAGIC_AT.get(int.from_bytes(start[:4], order))
        if place is not None and (magic := start[place : place + 3]) in (*_SINGLES, *_PAIRS):
            return magic
    return None


def _unpacked_start(head: bytes) -> bytes:
    if not head.startswith(_GZIP):
        return head[:_START_BYTES]
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, _START_BYTES)
    except zlib.error:
        return b""


def _voxels(payload: bytes, layout: _Layout, options: DecodeOptions) -> Array:
    """The stored array, a view of the unpacked bytes. No more is unpacked than the header declares."""
    if payload.startswith(_GZIP):
        refuse_bomb(layout.length, len(payload), file_bytes=options.file_bytes, ratio=options.ratio)
        payload = _unpacked(payload, layout.length)
    if len(payload) < layout.length:
        raise ImageError(f"the voxel data ends early: {len(payload)} of {layout.length} bytes are there")
    voxels = np.frombuffer(payload, layout.dtype, math.prod(layout.shape), layout.offset)
    return voxels.reshape(layout.shape, order="F")


def _unpacked(payload: bytes, size: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(payload)) as stream:
            found = stream.read(size)
            stream.read(1)  # past the end, where the checksum is compared
            return found
    except EOFError:
        raise ImageError("the packed file ends early") from None
    except (OSError, zlib.error):
        raise ImageError("the packed file is damaged") from None
