"""The display chain of DICOM: modality, values of interest, inversion, padding, bits, colour. Oracle: pydicom."""

import io
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from storage.decode import DecodeOptions, decode_image
from storage.errors import ImageError

Array = NDArray[Any]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def _dataset(pixels: Array, **elements: Any) -> Dataset:
    """A minimal image data set around `pixels` [h,w] or [h,w,3]; `elements` override and add."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    if "HighBit" not in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        dataset.add_new("PixelData", "OW", pixels.tobytes())
    return dataset


def _file(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _shown(pixels: Array, window: Any = 0, **elements: Any) -> Array:
    return decode_image(_file(_dataset(pixels, **elements)), format="dicom", options=DecodeOptions(window=window))


def _table(entries: Array, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def _close(image: Array, expected: Array) -> None:
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, expected, rtol=0, atol=2e-6)


# Values of interest


@settings(deadline=None, max_examples=60)
@given(
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    center=st.floats(-2000, 5000).map(lambda value: round(value, 2)),
    width=st.floats(1, 6000).map(lambda value: round(value, 2)),
    slope=st.sampled_from([1.0, 0.5, 2.25]),
    intercept=st.sampled_from([0.0, -1024.0, 17.5]),
    size=st.sampled_from([(3, 5), (64, 64)]),
    seed=st.integers(0, 99),
)
def test_a_window_shows_what_pydicom_shows_on_0_to_1(
    function: str, center: float, width: float, slope: float, intercept: float, size: tuple[int, int], seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(-2048, 2048, size).astype(np.int16)
    window = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    dataset = _dataset(pixels, BitsStored=12, RescaleSlope=slope, RescaleIntercept=intercept, **window)
    low, high = (value * slope + intercept for value in (-2048, 2047))

    image = decode_image(_file(dataset), format="dicom")

    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        expected = (apply_voi_lut(apply_modality_lut(pixels, dataset), dataset) - low) / (high - low)
    _close(image, expected)


@pytest.mark.parametrize(("choice", "used"), [(0, 0), (1, 1), (2, 2), (9, 2), ("widest", 1), ("narrowest", 2)], ids=str)
def test_one_of_several_windows_is_used_and_the_last_where_there_are_fewer(choice: Any, used: int) -> None:
    centers, widths = [1000, 2000, 300], [500, 3000, 80]
    image = _shown(RAMP, choice, WindowCenter=centers, WindowWidth=widths)
    np.testing.assert_array_equal(image, _shown(RAMP, WindowCenter=centers[used], WindowWidth=widths[used]))
    others = [index for index in range(3) if index != used]
    for other in others:
        assert not np.array_equal(image, _shown(RAMP, WindowCenter=centers[other], WindowWidth=widths[other]))


def test_without_a_window_the_image_goes_from_its_least_to_its_greatest_value() -> None:
    pixels = RAMP.astype(np.int16) - 1000
    _close(_shown(pixels, RescaleSlope=-2, RescaleIntercept=7), 1 - RAMP / 4095)


def test_a_window_of_no_width_counts_as_none() -> None:
    np.testing.assert_array_equal(_shown(RAMP, WindowCenter=0, WindowWidth=0), _shown(RAMP))


def test_a_flat_image_is_dark_and_not_an_error() -> None:
    assert not _shown(np.full((4, 5), 77, np.uint8)).any()


def test_monochrome1_is_turned_around_after_the_window() -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 700}
    _close(_shown(RAMP, PhotometricInterpretation="MONOCHROME1", **window), 1 - _shown(RAMP, **window))


def test_a_voi_table_wins_over_a_window_unless_windows_are_chosen_by_width() -> None:
    entries = np.random.default_rng(0).integers(0, 1024, 500)
    elements = {"VOILUTSequence": [_table(entries, 1000, 10)], "WindowCenter": 2000, "WindowWidth": 100}
    payload = _file(_dataset(RAMP, **elements))
    dataset = pydicom.dcmread(io.BytesIO(payload))
    _close(decode_image(payload, format="dicom"), apply_voi_lut(RAMP, dataset) / 1023)
    narrow = _shown(RAMP, "narrowest", **elements)
    np.testing.assert_array_equal(narrow, _shown(RAMP, WindowCenter=2000, WindowWidth=100))


def test_a_modality_table_comes_before_the_window() -> None:
    entries = np.random.default_rng(1).integers(0, 65536, 4000)
    pixels = RAMP.astype(np.int16) - 2000
    elements = {"ModalityLUTSequence": [_table(entries, -1990, 16)], "WindowCenter": 30000, "WindowWidth": 20000}
    payload = _file(_dataset(pixels, **elements))
    dataset = pydicom.dcmread(io.BytesIO(payload))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset) / 65535
    _close(decode_image(payload, format="dicom"), expected)


@pytest.mark.parametrize("name", ["vlut_04.dcm", "mlut_18.dcm"])
def test_real_tables_give_what_pydicom_gives(name: str) -> None:
    path = Path(get_testdata_file(name))
    dataset = pydicom.dcmread(path)
    item = (dataset.get("VOILUTSequence") or dataset.ModalityLUTSequence)[0]
    expected = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    if "VOILUTSequence" in dataset:
        expected /= 2 ** item.LUTDescriptor[2] - 1
    elif "WindowCenter" not in dataset:
        expected = (expected - expected.min()) / np.ptp(expected)
    _close(decode_image(path.read_bytes(), format="dicom"), expected)


def test_each_frame_of_an_enhanced_image_has_its_own_slope_and_window() -> None:
    def groups(slope: float, center: float | None) -> Dataset:
        group, transformation, voi = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 10
        group.PixelValueTransformationSequence = [transformation]
        if center is not None:
            voi.WindowCenter, voi.WindowWidth = center, 1000
            group.FrameVOILUTSequence = [voi]
        return group

    dataset = _dataset(RAMP, WindowCenter=1, WindowWidth=2, NumberOfFrames=2)
    dataset.PixelData = RAMP.tobytes() + RAMP[::-1].tobytes()
    dataset.SharedFunctionalGroupsSequence = [groups(5.0, 3000)]
    dataset.PerFrameFunctionalGroupsSequence = [groups(0.5, 900), groups(2.0, None)]
    payload = _file(dataset)

    first = decode_image(payload, format="dicom", frame=0)
    second = decode_image(payload, format="dicom", frame=1)

    elements = {"RescaleIntercept": 10, "WindowWidth": 1000}
    np.testing.assert_array_equal(first, _shown(RAMP, RescaleSlope=0.5, WindowCenter=900, **elements))
    np.testing.assert_array_equal(second, _shown(RAMP[::-1], RescaleSlope=2, WindowCenter=3000, **elements))


# Padding


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_dark_and_does_not_stretch_the_rest(photometric: str) -> None:
    pixels = RAMP.astype(np.int16)
    padded = pixels.copy()
    padded[:8] = -2000
    image = _shown(padded, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    assert not image[:8].any()
    np.testing.assert_array_equal(image[8:], _shown(pixels[8:], PhotometricInterpretation=photometric))


def test_padding_may_be_a_range_in_either_order() -> None:
    padded = RAMP.copy()
    for first, last in ((4000, 4095), (4095, 4000)):
        image = _shown(padded, PixelPaddingValue=first, PixelPaddingRangeLimit=last)
        assert not image[RAMP >= 4000].any()
        _close(image[RAMP < 4000], RAMP[RAMP < 4000] / 3999)


def test_padding_written_as_an_unsigned_word_is_found_in_signed_pixels() -> None:
    padded = RAMP.astype(np.int16)
    padded[:8] = -2000
    dataset = _dataset(padded)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    image = decode_image(_file(dataset), format="dicom")
    assert not image[:8].any()
    assert image[8, 0] == 0
    assert image[8, 1] > 0


def test_padding_beyond_the_stored_bits_is_found_before_these_are_cut() -> None:
    padded = RAMP.copy()
    padded[:8] = 63536
    image = _shown(padded, BitsStored=12, PixelPaddingValue=63536)
    assert not image[:8].any()
    _close(image[8:], (RAMP[8:] - 512) / (4095 - 512))


def test_an_image_of_nothing_but_padding_is_dark() -> None:
    assert not _shown(np.full((4, 5), 9, np.uint8), PixelPaddingValue=9, PhotometricInterpretation="MONOCHROME1").any()


def test_float_pixels_that_are_no_numbers_are_padding() -> None:
    pixels = np.array([[0.0, 5.0], [np.nan, -5.0]])
    dataset = _dataset(pixels, DoubleFloatPixelData=pixels.tobytes())
    _close(decode_image(_file(dataset), format="dicom"), np.array([[0.5, 1.0], [0.0, 0.0]]))


# Bits and bytes


def test_overlay_bits_beside_the_value_are_ignored() -> None:
    marked = RAMP | np.where(RAMP % 3 == 0, 0x8000, 0).astype(np.uint16)
    np.testing.assert_array_equal(_shown(marked, BitsStored=12), _shown(RAMP, BitsStored=12))


def test_values_at_the_upper_end_of_the_word_are_moved_down() -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 1000, "BitsStored": 12}
    image = _shown((RAMP << 4) | 0xF, HighBit=15, **window)
    np.testing.assert_array_equal(image, _shown(RAMP, **window))


def test_fifteen_bits_with_sign_keep_it() -> None:
    values = np.arange(-(2**14), 2**14, dtype=np.int16).reshape(128, 256)
    _close(_shown(values & 0x7FFF, BitsStored=15), (values.astype(int) + 2**14) / (2**15 - 1))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.uint32])
def test_whole_ranges_of_signed_and_wide_integers_survive(dtype: type) -> None:
    ends = np.iinfo(dtype)
    pixels = np.linspace(ends.min, ends.max, 300 * 300).astype(dtype).reshape(300, 300)
    expected = (pixels.astype(np.float64) - ends.min) / (float(ends.max) - ends.min)
    _close(_shown(pixels), expected)


def test_every_byte_order_and_element_encoding_gives_the_same_image() -> None:
    elements = {"BitsStored": 12, "VOILUTSequence": [_table(np.arange(4096)[::-1], 0, 12)]}
    expected = decode_image(_file(_dataset(RAMP, **elements)), format="dicom")
    for syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        np.testing.assert_array_equal(decode_image(_file(_dataset(RAMP, **elements), syntax), format="dicom"), expected)
    big = _dataset(RAMP.astype(">u2"), **elements)
    big.VOILUTSequence[0].LUTData = np.arange(4096)[::-1].astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(_file(big, ExplicitVRBigEndian), format="dicom"), expected)


def test_a_file_without_meta_information_is_read_by_what_its_elements_show() -> None:
    dataset = _dataset(RAMP)
    for implicit in (True, False):
        file = io.BytesIO()
        pydicom.dcmwrite(file, dataset, implicit_vr=implicit, little_endian=True)
        np.testing.assert_array_equal(decode_image(file.getvalue(), format="dicom"), _shown(RAMP))


# Compression


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
        ("emri_small_RLE.dcm", "emri_small.dcm"),
        ("emri_small_big_endian.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
        ("RG1_J2KR.dcm", "RG1_UNCR.dcm"),
        ("US1_J2KR.dcm", "US1_UNCR.dcm"),
        ("color-pl.dcm", "color-px.dcm"),
        ("SC_rgb_rle_16bit.dcm", "SC_rgb_16bit.dcm"),
        ("SC_rgb_expb_32bit.dcm", "SC_rgb_32bit.dcm"),
        ("liver_expb.dcm", "liver.dcm"),
    ],
)
def test_lossless_forms_of_one_image_are_equal(name: str, same: str) -> None:
    image, expected = (
        decode_image(Path(get_testdata_file(item)).read_bytes(), format="dicom") for item in (name, same)
    )
    np.testing.assert_array_equal(image, expected)


def test_twelve_bit_jpeg_is_read() -> None:
    """The two known pixels of this file, as other decoders give them; they run from 0 to 264."""
    image = decode_image(Path(get_testdata_file("JPGExtended.dcm")).read_bytes(), format="dicom")
    _close(image[[420, 230], [140, 120]] * 264, np.array([244, 95]))


def test_twelve_bit_jpeg_that_ends_early_is_refused() -> None:
    dataset = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([stream[: len(stream) // 2]])
    with pytest.raises(ImageError, match="12-bit JPEG"):
        decode_image(_file(dataset, dataset.file_meta.TransferSyntaxUID), format="dicom")


@pytest.mark.parametrize(
    ("name", "marker", "offset"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", b"\xff\xc3", 5),
        ("JPGExtended.dcm", b"\xff\xc1", 5),
        ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xf7", 5),
        ("MR_small_jp2klossless.dcm", b"\xff\x4f\xff\x51", 12),
    ],
)
def test_a_compressed_frame_that_is_larger_than_declared_is_not_decoded(name: str, marker: bytes, offset: int) -> None:
    payload = bytearray(Path(get_testdata_file(name)).read_bytes())
    place = payload.index(marker) + offset
    payload[place : place + 2] = b"\xff\x00"
    with pytest.raises(ImageError, match=r"the compressed frame is \d+ x \d+, the header says"):
        decode_image(bytes(payload), format="dicom")


def test_a_deflated_data_set_that_inflates_beyond_need_is_not_inflated() -> None:
    empty = _file(_dataset(RAMP), DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(empty[140:144], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(bytes(100_000_000)) + squeeze.flush()
    with pytest.raises(ImageError, match="inflates to more than"):
        decode_image(empty[:start] + bomb, format="dicom", options=DecodeOptions(pixels=4096))


# Colour


@pytest.mark.parametrize(
    "name",
    [
        "examples_ybr_color.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_ybr_full_uncompressed.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "color3d_jpeg_baseline.dcm",
    ],
)
def test_colours_are_pydicoms_rgb(name: str) -> None:
    path = Path(get_testdata_file(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = pydicom.dcmread(path).pixel_array
    expected = pixels[0] if pixels.ndim == 4 else pixels
    np.testing.assert_array_equal(decode_image(path.read_bytes(), format="dicom"), expected)


@pytest.mark.parametrize("name", ["examples_palette.dcm", "OT-PAL-8-face.dcm", "gdcm-US-ALOKA-16.dcm"])
def test_palettes_plain_and_segmented_give_what_pydicom_gives(name: str) -> None:
    path = Path(get_testdata_file(name))
    dataset = pydicom.dcmread(path, force=True)
    dataset.file_meta.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian)
    expected = apply_color_lut(dataset.pixel_array, dataset)
    image = decode_image(path.read_bytes(), format="dicom")
    assert image.shape == expected.shape
    ratio = np.iinfo(image.dtype).max / (2 ** dataset.RedPaletteColorLookupTableDescriptor[2] - 1)
    np.testing.assert_array_equal(image, np.rint(expected * ratio))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_of_bytes_reaches_white_whatever_depth_it_declares(bits: int) -> None:
    tables = {}
    for colour, order in (("Red", 1), ("Green", -1), ("Blue", 1)):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tables[f"{colour}PaletteColorLookupTableData"] = np.arange(256, dtype=np.uint8)[::order].tobytes()
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = _shown(indices, PhotometricInterpretation="PALETTE COLOR", **tables)
    np.testing.assert_array_equal(image, np.dstack([indices, 255 - indices, indices]))


def test_twelve_bit_colours_are_spread_over_sixteen() -> None:
    pixels = np.array([[[0, 4095, 1], [2048, 4095, 0]]], np.uint16)
    image = _shown(pixels, BitsStored=12)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, np.rint(pixels / 4095 * 65535))


# Refusals


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"RescaleSlope": 1e308, "RescaleIntercept": -1e308}, "too large to reckon with"),
        ({"PhotometricInterpretation": "XYZ"}, "PhotometricInterpretation"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel is 3"),
        ({"BitsAllocated": 24}, "BitsAllocated is 24"),
        ({"BitsStored": 17}, "BitsStored is 17; 1 to 16"),
        ({"VOILUTFunction": "CANARY", "WindowCenter": 1, "WindowWidth": 2}, "VOILUTFunction is none of"),
        ({"NumberOfFrames": 2}, "ends early: 8192 of 16384"),
        ({"VOILUTSequence": [_table(np.arange(10), 0, 33)]}, "asks for 33 bits"),
        ({"PixelData": b""}, "pixel data is empty"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_header_is_refused_by_its_keyword(elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        _shown(RAMP, **elements)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleSlope"])
def test_a_text_where_a_number_belongs_is_not_repeated(keyword: str) -> None:
    dataset = _dataset(RAMP, WindowWidth=5, **{keyword: 12345678})
    payload = _file(dataset).replace(b"12345678", b"CANARY^B")
    with pytest.raises(ImageError, match=keyword) as caught:
        decode_image(payload, format="dicom")
    assert "CANARY" not in str(caught.value)


def test_an_unknown_transfer_syntax_is_not_repeated() -> None:
    payload = _file(_dataset(RAMP)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.826.0.1.3680043\0")
    with pytest.raises(ImageError, match="unknown transfer syntax"):
        decode_image(payload, format="dicom")


def test_compressed_pixels_without_a_named_syntax_are_refused() -> None:
    dataset = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    assert dataset.file_meta.TransferSyntaxUID == JPEG2000Lossless
    payload = Path(get_testdata_file("MR_small_jp2klossless.dcm")).read_bytes()
    meta_length = int.from_bytes(payload[140:144], sys.byteorder)
    with pytest.raises(ImageError, match="does not say how"):
        decode_image(payload[144 + meta_length :], format="dicom")
