"""The header of a DICOM file up to the last element the catalogue needs, and not a byte of the rest.

pydicom's element generator skips what is not asked for without building data sets; endianness and value
representation are judged from the bytes, because archives hold files whose declaration is wrong or missing.
"""

import io
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from storage.errors import ImageError
from storage.summary import Header, SliceHeader

_MAGIC_AT = 128
_MAGIC = b"DICM"
_SYNTAX = 0x00020010
_CLASS_IN_META = 0x00020002
_CLASS = 0x00080016
_MODALITY = 0x00080060
_PATIENT = 0x00100020
_IMAGER_SPACING = 0x00181164
_SERIES = 0x0020000E
_POSITION = 0x00200032
_ORIENTATION = 0x00200037
_REFERENCE = 0x00200052
_SAMPLES = 0x00280002
_PHOTOMETRIC = 0x00280004
_FRAMES = 0x00280008
_ROWS = 0x00280010
_COLUMNS = 0x00280011
_SPACING = 0x00280030
_ALLOCATED = 0x00280100
_STORED = 0x00280101
_BURNED_IN = 0x00280301
Elements = tuple[int, ...]
IMAGE_ELEMENTS: Elements = (
    _CLASS,
    _MODALITY,
    _PATIENT,
    _IMAGER_SPACING,
    _SAMPLES,
    _PHOTOMETRIC,
    _FRAMES,
    _ROWS,
    _COLUMNS,
    _SPACING,
    _ALLOCATED,
    _STORED,
    _BURNED_IN,
)
"""What a catalogue of images reads."""
SLICE_ELEMENTS: Elements = (*IMAGE_ELEMENTS, _SERIES, _POSITION, _ORIENTATION, _REFERENCE)
"""What a catalogue of volumes reads: also of which volume an image is a slice, and where it lies."""
_LAST = max(SLICE_ELEMENTS)
# What is inflated of a deflated data set: a header of more would be one no other reader takes either.
_INFLATED_BYTES = 16 << 20
_CODE = re.compile(rb"[A-Z]{2,16}")
_WORD_LENGTHS = {2, 4}
_WIDEST = 1e6  # mm: no pixel is so wide


def is_dicom(head: bytes) -> bool:
    """Whether a file starting with these bytes is DICOM, with its preamble or without."""
    if head[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC:
        return True
    if len(head) < 8:
        return False
    # A bare data set starts in a group every writer starts in, with an explicit or a credible implicit length.
    for order in ("little", "big"):
        group = int.from_bytes(head[0:2], order)
        element = int.from_bytes(head[2:4], order)
        if group in (0x0002, 0x0008) and element <= 0x0100:
            return _has_vr(head[4:6]) or int.from_bytes(head[4:8], order) <= 1024
    return False


def summarise_dicom(head: bytes, elements: Elements, *, whole: bool) -> Header:
    """The header of the file that starts with these bytes; its `slice` is None unless SLICE_ELEMENTS are read.

    Raises EOFError when more bytes are needed (never if ``whole``), ImageError when there is no image in it.
    """
    start = _MAGIC_AT + 4 if head[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC else 0
    stream = io.BytesIO(head)
    stream.seek(start)
    try:
        meta = _elements(stream, explicit=True, little=True, last=0x0002FFFF, wanted=None, whole=whole)
        body, little = _body(head, stream, meta.get(_SYNTAX, b""))
        position = body.tell()
        explicit = _has_vr(body.read(6)[4:6])
        body.seek(position)
        found = _elements(body, explicit=explicit, little=little, last=_LAST, wanted=list(elements), whole=whole)
    except Exception as error:
        # Whatever pydicom stumbles over in a cut header may be mended by more bytes; its words may quote values.
        if not whole:
            raise EOFError from None
        raise ImageError(f"the DICOM header is damaged ({type(error).__name__})") from None
    values = _Elements(found, "little" if little else "big")
    return _summary(values, _class_name(found, meta), _slice(values) if _SERIES in elements else None)


def _body(head: bytes, stream: io.BytesIO, syntax: bytes) -> tuple[io.BytesIO, bool]:
    """The stream at the start of the data set, and whether it is little endian."""
    uid = syntax.strip(b" \0").decode("ascii", "replace")
    if uid == DeflatedExplicitVRLittleEndian:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[stream.tell() :], _INFLATED_BYTES)
        return io.BytesIO(inflated), True
    # Group numbers at the start of a data set are small: a big one is a small one read the wrong way round.
    first = head[stream.tell() : stream.tell() + 2]
    swapped = int.from_bytes(first, "little") >= 0x0400
    return stream, not (uid == ExplicitVRBigEndian or (not uid and swapped))


def _elements(
    stream: io.BytesIO, *, explicit: bool, little: bool, last: int, wanted: list[int] | None, whole: bool
) -> dict[int, bytes]:
    """Raw values by tag, up to tag ``last``. Raises EOFError when the stream ends before that."""
    passed = False

    def beyond(tag: int, vr: str | None, length: int) -> bool:
        nonlocal passed
        passed = int.__gt__(tag, last)  # pydicom's own comparison of tags takes longer than reading one
        return passed

    found = {
        int(element.tag): element.value or b""
        for element in data_element_generator(stream, not explicit, little, stop_when=beyond, specific_tags=wanted)
        if isinstance(element, RawDataElement)
    }
    if not passed and not whole:
        raise EOFError
    return found


def _has_vr(letters: bytes) -> bool:
    return len(letters) == 2 and all(0x41 <= letter <= 0x5A for letter in letters)


@dataclass(frozen=True, slots=True)
class _Elements:
    raw: Mapping[int, bytes]
    order: str

    def text(self, tag: int) -> bytes:
        return self.raw.get(tag, b"").strip(b" \0")

    def word(self, tag: int) -> int | None:
        value = self.raw.get(tag, b"")
        return (
            int.from_bytes(value, "little" if self.order == "little" else "big")
            if len(value) in _WORD_LENGTHS
            else None
        )

    def required(self, tag: int, keyword: str) -> int:
        number = self.word(tag)
        if not number:
            raise ImageError(f"the DICOM header gives no usable {keyword}")
        return number


def _class_name(found: Mapping[int, bytes], meta: Mapping[int, bytes]) -> str:
    """The kind of object in the standard's words; a UID the standard does not know is not repeated."""
    uid = UID((found.get(_CLASS) or meta.get(_CLASS_IN_META) or b"").strip(b" \0").decode("ascii", "replace"))
    return uid.name if uid and uid.name != uid else "of unknown kind"


def _slice(elements: _Elements) -> SliceHeader:
    return SliceHeader(
        elements.text(_SERIES),
        elements.text(_REFERENCE),
        elements.text(_POSITION),
        elements.text(_ORIENTATION),
        elements.text(_SPACING),
        elements.text(_PHOTOMETRIC),
    )


def _summary(elements: _Elements, class_name: str, place: SliceHeader | None) -> Header:
    if _ROWS not in elements.raw and _COLUMNS not in elements.raw:
        raise ImageError(f"a DICOM file without an image in it ({class_name})")
    samples = elements.word(_SAMPLES) or 1
    photometric = elements.text(_PHOTOMETRIC)
    modality = elements.text(_MODALITY)
    burned_in = {b"YES": True, b"NO": False}.get(elements.text(_BURNED_IN))
    return Header(
        format="dicom",
        height=elements.required(_ROWS, "Rows"),
        width=elements.required(_COLUMNS, "Columns"),
        channels=3 if photometric == b"PALETTE COLOR" else samples,
        bits=elements.word(_STORED) or elements.required(_ALLOCATED, "BitsAllocated"),
        frames=_frames(elements.text(_FRAMES)),
        # Anything but a plain code is not a modality, and could be anything.
        modality=modality.decode() if _CODE.fullmatch(modality) else None,
        burned_in=burned_in,
        spacing=_spacing(elements.text(_SPACING)) or _spacing(elements.text(_IMAGER_SPACING)),
        slice=place,
        patient=elements.text(_PATIENT) or None,
    )


def decimals(text: bytes, count: int) -> tuple[float, ...] | None:
    """The numbers of a decimal string as written, or None unless there are `count`, all finite."""
    try:
        numbers = tuple(map(float, text.split(b"\\")))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _spacing(text: bytes) -> tuple[float, ...] | None:
    """mm between rows, and between columns."""
    spacing = decimals(text, 2) if text else None
    return spacing if spacing is not None and min(spacing) > 0 and max(spacing) < _WIDEST else None


def _frames(text: bytes) -> int:
    """0 is written for 1 by many; the standard allows neither less nor words."""
    if text in (b"", b"0"):
        return 1
    try:
        frames = int(text)
    except ValueError:
        frames = -1
    if frames < 1:
        raise ImageError("the DICOM header gives no usable NumberOfFrames")
    return frames
