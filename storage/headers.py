"""What an image file says about itself, from as few of its bytes as possible. By content, never by name."""

from storage.containers import Stream
from storage.dicom_summary import IMAGE_ELEMENTS, Elements, is_dicom, summarise_dicom
from storage.errors import ImageError
from storage.listing import ArchiveCaps
from storage.nifti import is_nifti, summarise_nifti
from storage.raster_summary import raster_format, summarise_raster
from storage.summary import Header
from storage.volumes import refuse_large

__all__ = ["Header", "read_header"]

_FIRST_BYTES = 16 << 10
_GROWTH = 8
_EXPECTED = "expected DICOM, PNG, JPEG, TIFF or NIfTI"
_OTHERS = {
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"\0\0\0\x0cjP  ": "a bare JPEG 2000 picture",
    b"\xff\x4f\xff\x51": "a bare JPEG 2000 picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip by content, but not by name",
    b"\x1f\x8b": "a gzip-compressed file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"RIFF": "a RIFF file (WebP, WAV, AVI)",
}


def read_header(stream: Stream, caps: ArchiveCaps, elements: Elements = IMAGE_ELEMENTS) -> Header:
    """The header of the image file that ``stream`` starts; ``elements`` are what is read of DICOM.

    Raises ImageError with the reason when it is no image, is damaged, or declares more than the caps allow.
    """
    header = _shortest(stream, elements)
    _hold_to(caps, header)
    return header


def _shortest(stream: Stream, elements: Elements) -> Header:
    """The header from a growing head of the file; the whole of it, at worst."""
    head, wanted = b"", _FIRST_BYTES
    while len(head := head + stream.read(wanted - len(head))) == wanted:
        try:
            return _summarise(head, elements, whole=False)
        except EOFError:
            wanted *= _GROWTH
    return _summarise(head, elements, whole=True)


def _summarise(head: bytes, elements: Elements, *, whole: bool) -> Header:
    if is_dicom(head):
        return summarise_dicom(head, elements, whole=whole)
    raster = raster_format(head)
    if raster is not None:
        return summarise_raster(head, raster, whole=whole)
    if is_nifti(head):
        return summarise_nifti(head)
    raise ImageError(_stranger(head))


def _stranger(head: bytes) -> str:
    """Why a file is not an image, as far as its first bytes tell."""
    if not head:
        return "the file is empty"
    for signature, name in _OTHERS.items():
        if head.startswith(signature):
            return f"{name}; {_EXPECTED}"
    if head.count(b"\0") == 0 and _is_text(head[:1024]):
        return f"a text file; {_EXPECTED}"
    return f"not an image this reads by its content; {_EXPECTED}"


def _is_text(sample: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) or byte >= 160 for byte in sample)
    return printable > 0.95 * len(sample)


def _hold_to(caps: ArchiveCaps, header: Header) -> None:
    samples = header.height * header.width * header.channels
    if samples == 0:
        raise ImageError("the header gives no usable image size")
    if samples > caps.pixels:
        raise ImageError(
            f"a frame of {header.height} x {header.width} x {header.channels} samples, "
            f"more than the {caps.pixels} allowed (archive.caps.pixels)"
        )
    if header.depth > 1:
        refuse_large((header.depth, header.height, header.width), caps.voxels)
    if header.frames > caps.frames:
        raise ImageError(f"{header.frames} frames, more than the {caps.frames} allowed (archive.caps.frames)")
