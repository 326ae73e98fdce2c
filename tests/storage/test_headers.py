"""A header is read by content, from as few bytes as possible, and judged before any pixel is touched."""

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from storage.archive import Stream
from storage.dicom_summary import SLICE_ELEMENTS
from storage.errors import ImageError
from storage.headers import Header, read_header
from storage.listing import ArchiveCaps
from storage.quiet import quiet
from storage.summary import SliceHeader
from tests.storage.sample_files import dicom, raster

CANARY = "MUSTERMANN"
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


class _Counting(io.BytesIO):
    """Knows how far it was read."""

    reached = 0

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self.reached = max(self.reached, self.tell())
        return chunk


def _header(payload: bytes, **caps: int) -> Header:
    with quiet("pydicom"):
        return read_header(Stream(io.BytesIO(payload)), ArchiveCaps(**caps), SLICE_ELEMENTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("preamble", [True, False])
def test_dicom_is_recognised_in_every_encoding_with_its_preamble_or_without(syntax: str, preamble: bool) -> None:
    payload = dicom(
        syntax=syntax, rows=7, columns=9, frames=5, PatientID=CANARY, BurnedInAnnotation="YES", BitsStored=6, HighBit=5,
        SeriesInstanceUID="1.2.3", FrameOfReferenceUID="1.2.4", ImagePositionPatient=[1, -2.5, 3],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[0.5, 0.25],
    )  # fmt: skip
    header = _header(payload if preamble else payload[132:])
    assert header == Header(
        "dicom", height=7, width=9, channels=1, bits=6, frames=5, modality="OT", burned_in=True,
        spacing=(0.5, 0.25), patient=CANARY.encode(),
        slice=SliceHeader(
            series=b"1.2.3", reference=b"1.2.4", position=b"1.0\\-2.5\\3.0",
            orientation=b"1.0\\0.0\\0.0\\0.0\\1.0\\0.0",
            spacing=b"0.5\\0.25", photometric=b"MONOCHROME2",
        ),
    )  # fmt: skip
    assert "1.2.3" not in repr(header)
    assert CANARY not in repr(header)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [1, 1]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.143, 0.143]}, (0.143, 0.143)),
        ({"PixelSpacing": [0, 0.25]}, None),
        ({}, None),
    ],
)
def test_spacing_is_of_the_pixels_or_else_of_the_detector(elements: dict[str, object], expected: object) -> None:
    assert _header(dicom(**elements)).spacing == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_bare_data_set_is_read_without_any_declaration(syntax: str) -> None:
    payload = dicom(syntax=syntax)
    meta_length = struct.unpack("<I", payload[140:144])[0]
    assert _header(payload[144 + meta_length :]).width == 6


@pytest.mark.parametrize("declared", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_wrong_declaration_of_the_encoding_does_no_harm(declared: str) -> None:
    other = ImplicitVRLittleEndian if declared == ExplicitVRLittleEndian else ExplicitVRLittleEndian
    honest, body = dicom(syntax=declared), dicom(syntax=other)
    lying = honest[: 144 + _meta_length(honest)] + body[144 + _meta_length(body) :]
    assert _header(lying).height == 4


def _meta_length(payload: bytes) -> int:
    return int(struct.unpack("<I", payload[140:144])[0])


def test_an_implicit_length_that_spells_letters_is_not_taken_for_a_representation() -> None:
    payload = dicom(syntax=ImplicitVRLittleEndian)
    at = payload.index(b"\x28\0\x02\0")
    private = b"\x09\0\x10\x10" + struct.pack("<I", 0x4242) + bytes(0x4242)
    assert _header(payload[:at] + private + payload[at:]).height == 4


def test_pixels_are_not_read() -> None:
    stream = _Counting(dicom(rows=4000, columns=4000))
    assert read_header(Stream(stream), ArchiveCaps()).height == 4000
    assert stream.reached <= 16 << 10


def test_a_header_longer_than_the_first_bytes_is_followed_to_its_end() -> None:
    icons = [Dataset() for _ in range(300)]
    for icon in icons:
        icon.RetrieveURL = "x" * 1000
    payload = dicom(rows=2000, columns=2000, ReferencedImageSequence=Sequence(icons))
    stream = _Counting(payload)
    assert read_header(Stream(stream), ArchiveCaps()).width == 2000
    assert 300_000 < stream.reached < len(payload) / 2


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "JPEG2000.dcm"])
def test_real_headers_agree_with_pydicom(name: str) -> None:
    path = get_testdata_file(name)
    dataset = dcmread(path)
    with open(path, "rb") as file:
        header = _header(file.read())
    assert (header.height, header.width) == (dataset.Rows, dataset.Columns)
    assert header.bits == dataset.BitsStored
    assert header.modality == (dataset.Modality or None)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": None, "Columns": None}, "without an image in it .*Secondary Capture"),
        ({"Rows": None}, "no usable Rows"),
        ({"Columns": 0}, "no usable Columns"),
        ({"NumberOfFrames": -3}, "no usable NumberOfFrames"),
        ({"BitsStored": 0, "BitsAllocated": 0}, "no usable BitsAllocated"),
        ({"SOPClassUID": "1.2.826.99", "Rows": None, "Columns": None}, "of unknown kind"),
    ],
)
def test_dicom_that_is_no_image_says_what_is_missing(elements: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        _header(dicom(**elements))  # type: ignore[arg-type]
    assert "1.2.826.99" not in str(caught.value)


def test_words_in_numeric_elements_are_not_repeated() -> None:
    payload = dicom(frames=11).replace(b"\x28\x00\x08\x00IS\x02\x0011", b"\x28\x00\x08\x00IS\x02\x00XY")
    with pytest.raises(ImageError) as caught:
        _header(payload)
    assert "XY" not in str(caught.value)


def test_a_modality_that_is_no_code_is_left_out() -> None:
    with pytest.warns(UserWarning, match="Invalid value"):
        payload = dicom(Modality=f"{CANARY}^MAX")
    assert _header(payload).modality is None


def test_a_palette_counts_as_three_channels_and_zero_frames_as_one() -> None:
    assert _header(dicom(PhotometricInterpretation="PALETTE COLOR")).channels == 3
    assert _header(dicom(NumberOfFrames=0)).frames == 1


@pytest.mark.parametrize(
    ("caps", "elements", "reason"),
    [
        ({"pixels": 1000}, {"Rows": 40, "Columns": 40}, "40 x 40 x 1 samples, more than the 1000"),
        ({"frames": 10}, {"NumberOfFrames": 11}, "11 frames, more than the 10"),
    ],
)
def test_declared_sizes_are_held_to_the_caps(caps: dict[str, int], elements: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        _header(dicom(**elements), **caps)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format", "mode", "channels", "bits"),
    [
        ("PNG", "L", 1, 8),
        ("PNG", "1", 1, 1),
        ("PNG", "I;16", 1, 16),
        ("PNG", "LA", 2, 8),
        ("PNG", "P", 3, 8),
        ("PNG", "RGB", 3, 8),
        ("PNG", "RGBA", 4, 8),
        ("JPEG", "L", 1, 8),
        ("JPEG", "RGB", 3, 8),
        ("JPEG", "CMYK", 3, 8),
        ("TIFF", "1", 1, 1),
        ("TIFF", "L", 1, 8),
        ("TIFF", "I;16", 1, 16),
        ("TIFF", "RGB", 3, 8),
        ("TIFF", "RGBA", 4, 8),
    ],
)
def test_rasters_of_every_kind(format: str, mode: str, channels: int, bits: int) -> None:
    assert _header(raster(format, mode)) == Header(format.lower(), 4, 6, channels, bits)


def test_pages_of_a_tiff_are_frames() -> None:
    assert _header(raster("TIFF", pages=3)).frames == 3


def test_a_png_that_declares_a_monster_is_refused_unread() -> None:
    payload = bytearray(raster("PNG"))
    struct.pack_into(">II", payload, 16, 60_000, 60_000)
    struct.pack_into(">I", payload, 29, zlib.crc32(payload[12:29]))
    with pytest.raises(ImageError, match=r"more than|more pixels"):
        _header(bytes(payload))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "the file is empty"),
        (f"name,{CANARY}\n".encode(), "a text file"),
        (b"GIF89a" + bytes(100), "a GIF picture"),
        (b"PK\x03\x04" + bytes(100), "a zip by content"),
        (b"\x1f\x8b" + bytes(100), "gzip-compressed"),
        (bytes(1000), "not an image"),
        (b"\x89PNG\r\n\x1a\n" + CANARY.encode(), "the PNG header is damaged"),
        (b"\xff\xd8\xff\xe0" + CANARY.encode(), "the JPEG header is damaged"),
        (b"II*\0" + CANARY.encode(), "the TIFF header is damaged"),
        (bytes(128) + b"DICM", "without an image"),
        (bytes(128) + b"DICM" + CANARY.encode() * 10, "without an image|damaged"),
    ],
)
def test_whatever_is_no_image_is_named_without_quoting_it(payload: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        _header(payload)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("payload", [dicom(), raster("PNG"), raster("JPEG"), raster("TIFF")])
def test_a_file_cut_anywhere_gives_a_header_or_a_reason(payload: bytes) -> None:
    whole = _header(payload)
    for length in range(0, len(payload), 7):
        with suppress(ImageError):
            assert _header(payload[:length]).height == whole.height


@pytest.mark.parametrize("representation", [b"SQ", b"OB"])
def test_an_element_that_never_ends_is_a_reason(representation: bytes) -> None:
    payload = dicom()
    at = payload.index(b"\x28\0\x02\0")
    with pytest.raises(ImageError, match="damaged"):
        _header(payload[:at] + b"\x09\0\x10\x10" + representation + b"\0\0\xff\xff\xff\xff" + payload[at:])


def test_pillow_says_nothing_about_a_header_it_does_not_like(caplog: pytest.LogCaptureFixture) -> None:
    payload = bytearray(raster("TIFF", "RGB"))
    samples = payload.index(struct.pack("<HHI", 277, 3, 1))
    struct.pack_into("<H", payload, samples + 8, 4711)
    with pytest.raises(ImageError):
        _header(bytes(payload))
    assert caplog.records == []


def test_a_deflated_bomb_is_not_inflated_to_its_end() -> None:
    honest = dicom(syntax=DeflatedExplicitVRLittleEndian)
    start = 144 + _meta_length(honest)
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    element = b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", 500 << 20)
    bomb = squeeze.compress(element) + b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(100)) + squeeze.flush()
    tracemalloc.start()
    with pytest.raises(ImageError):
        _header(honest[:start] + bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 << 20
