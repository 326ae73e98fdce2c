"""The one door: formats, frames, and what every decoded image promises."""

import io
import logging
import warnings
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless

from storage import dicom_pixels
from storage.decode import DecodeOptions, decode_frames, decode_image
from storage.errors import ImageError

PYDICOM_FILES = sorted(path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file())
MORE_FILES = sorted((Path(data_store.__file__).parent / "data").iterdir())
KINDS = {(2, "float32"), (3, "float32"), (3, "uint8"), (3, "uint16")}


def _payload(name: str) -> bytes:
    return Path(get_testdata_file(name)).read_bytes()


def _pydicom_shape(payload: bytes) -> tuple[int, ...] | None:
    """The first frame's shape where pydicom decodes the file, None where it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(payload), force=True)
            pixels = dataset.pixel_array
        except Exception:
            return None
    return pixels.shape[1:] if int(dataset.get("NumberOfFrames") or 1) > 1 else pixels.shape


def _texts(payload: bytes) -> set[str]:
    """Every text of the header that is long enough to be recognised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(payload), force=True, stop_before_pixels=True)
            return {text for item in dataset.iterall() if len(text := str(item.value).strip()) > 6 and item.VR != "CS"}
        except Exception:
            return set()


@pytest.mark.parametrize("path", [*PYDICOM_FILES, *MORE_FILES], ids=lambda path: path.name)
def test_every_file_ends_as_an_image_or_as_a_reason_without_its_header_texts(path: Path) -> None:
    payload = path.read_bytes()
    expected = _pydicom_shape(payload)
    try:
        image = decode_image(payload, format="dicom")
    except ImageError as error:
        reason = str(error)
        assert expected is None, f"pydicom decodes it, here it is refused: {reason}"
        assert reason[0].isalpha()
        assert 15 < len(reason) < 200
        assert "\n" not in reason
        assert not any(text in reason for text in _texts(payload))
    else:
        assert (image.ndim, image.dtype.name) in KINDS
        assert image.flags.c_contiguous
        assert expected is None or image.shape[:2] == expected[:2]
        assert image.dtype != np.float32 or (image.min() >= 0 and image.max() <= 1)


def test_pydicoms_wheel_still_has_the_files_that_were_counted() -> None:
    assert len([path for path in PYDICOM_FILES if path.suffix not in (".py", ".pyc")]) >= 200
    assert len(MORE_FILES) >= 67


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "ends early: 8130 of 8192 bytes"),
        ("emri_small_jpeg_2k_lossless_too_short.dcm", "ends early, in the middle"),
        ("rtplan.dcm", "holds no pixels"),
        ("badVR.dcm", "NumberOfFrames"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "the header says 1024 x 256"),
        ("README.txt", "holds no pixels"),
    ],
)
def test_a_refused_file_says_why(name: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(_payload(name), format="dicom")


def test_the_header_is_read_once_for_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def counted(payload: bytes, pixels: int) -> pydicom.Dataset:
        reads.append(len(payload))
        return read(payload, pixels)

    read = dicom_pixels.read_header
    monkeypatch.setattr(dicom_pixels, "read_header", counted)
    payload = _payload("emri_small.dcm")

    frames = list(decode_frames(payload, format="dicom", frames=(9, 0, 3)))

    assert reads == [len(payload)]
    for frame, image in zip((9, 0, 3), frames, strict=True):
        np.testing.assert_array_equal(image, decode_image(payload, format="dicom", frame=frame))


def test_a_damaged_frame_costs_only_itself() -> None:
    dataset = pydicom.dcmread(get_testdata_file("emri_small_jpeg_2k_lossless.dcm"))
    streams = list(generate_frames(dataset.PixelData, number_of_frames=10))
    streams[4] = streams[4][:60] + bytes(len(streams[4]) - 60)
    dataset.PixelData = encapsulate(streams)
    file = io.BytesIO()
    dataset.save_as(file)

    results = list(decode_frames(file.getvalue(), format="dicom", frames=range(10)))

    assert [index for index, result in enumerate(results) if isinstance(result, ImageError)] == [4]
    whole = list(decode_frames(_payload("emri_small_jpeg_2k_lossless.dcm"), format="dicom", frames=range(10)))
    for index in (3, 5, 9):
        np.testing.assert_array_equal(results[index], whole[index])


def test_a_frame_that_is_not_there_is_refused_in_every_format() -> None:
    for frame in (-1, 10):
        with pytest.raises(ImageError, match="10"):
            decode_image(_payload("emri_small.dcm"), format="dicom", frame=frame)


def test_the_cap_is_held_before_anything_is_decoded() -> None:
    payload = bytearray(_payload("MR_small_RLE.dcm"))
    payload[1600:6000] = bytes(4400)
    with pytest.raises(ImageError, match="4096 samples, over the cap of 4095"):
        decode_image(bytes(payload), format="dicom", options=DecodeOptions(pixels=4095))


def test_any_byte_of_the_header_may_be_wrong() -> None:
    """Every byte of the image elements, with one wrong value each: an image or a reason, never another error."""
    payload, random = _payload("MR_small_expb.dcm"), np.random.default_rng(7)
    first, last = payload.index(b"\x00\x28\x00\x02"), payload.index(b"\x7f\xe0\x00\x10") + 20
    outcomes = set()
    for place in range(first, last):
        damaged = payload[:place] + random.bytes(1) + payload[place + 1 :]
        outcomes |= {type(result) for result in decode_frames(damaged, format="dicom", frames=(0,))}
    assert outcomes == {np.ndarray, ImageError}


def test_an_unknown_format_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="expected dicom, png, jpeg or tiff"):
        decode_image(b"", format="gif")


def test_nothing_of_the_header_is_warned_or_logged(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    dataset = pydicom.dcmread(io.BytesIO(_payload("CT_small.dcm")))
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([b"CANARY^BIRD"])
    dataset["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)

    with caplog.at_level(logging.DEBUG), pytest.raises(ImageError) as caught:
        decode_image(file.getvalue(), format="dicom")

    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert caplog.records == []
    assert len(recwarn) == 0
