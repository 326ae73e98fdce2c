"""Volumes are decoded to one frame of reference and one window, from DICOM series, multi-frame files and NIfTI."""

import gzip
import io
import itertools
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image
from pydicom.dataset import Dataset

from storage.archive import Stream
from storage.decode import DecodeOptions, Volume, decode_image, decode_volume
from storage.errors import ImageError
from storage.headers import read_header
from storage.listing import ArchiveCaps
from tests.storage.volume_files import (
    SPACING,
    Array,
    acquired,
    enhanced,
    heights,
    nifti,
    nifti_image,
    ramp,
    series,
    slice_file,
)

RAMP = ramp()
SHOWN = ((RAMP - RAMP.min()) / np.ptp(RAMP)).astype(np.float32)[..., None]


def _dicom(files: list[bytes], **options: Any) -> Volume:
    return decode_volume(files, format="dicom", options=DecodeOptions(**options))


def _nifti(payload: bytes, **options: Any) -> Volume:
    return decode_volume([payload], format="nifti", options=DecodeOptions(**options))


def _refused(expected: str) -> Any:
    return pytest.raises(ImageError, match=re.escape(expected))


def test_a_series_and_a_nifti_file_of_one_volume_are_one_array() -> None:
    from_series, from_nifti = _dicom(series(RAMP)), _nifti(nifti(RAMP))
    np.testing.assert_array_equal(from_series.pixels, from_nifti.pixels)
    np.testing.assert_allclose(from_series.pixels, SHOWN, atol=1e-6)
    assert from_series.spacing == from_nifti.spacing == SPACING
    for volume in (from_series, from_nifti):
        assert (volume.pixels.shape, volume.pixels.dtype) == ((5, 4, 6, 1), np.float32)
        assert volume.pixels.flags.c_contiguous


_DIRECTIONS = [tuple(int(x) for x in sign * np.eye(3, dtype=int)[axis]) for axis in range(3) for sign in (1, -1)]
_PLANES = [(row, column) for row, column in itertools.permutations(_DIRECTIONS, 2) if not np.dot(row, column)]


@pytest.mark.parametrize(("row", "column"), _PLANES)
def test_every_plane_a_series_is_acquired_in_gives_the_same_volume(
    row: tuple[int, ...], column: tuple[int, ...]
) -> None:
    files = acquired(RAMP, row, column)
    for order in (files, files[::-1], files[1:] + files[:1]):
        volume = _dicom(order)
        np.testing.assert_allclose(volume.pixels, SHOWN, atol=1e-6)
        assert volume.spacing == SPACING


def test_every_order_of_a_nifti_files_axes_gives_the_same_volume() -> None:
    image = nifti_image(RAMP)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            volume = _nifti(image.as_reoriented(np.array(list(zip(axes, flips, strict=True)))).to_bytes())
            np.testing.assert_allclose(volume.pixels, SHOWN, atol=1e-6)
            assert volume.spacing == SPACING


def test_a_missing_slice_is_refused_or_interpolated_by_choice() -> None:
    files = series(RAMP)
    del files[2]
    with _refused("1 slice missing of 5: a gap of 2.0 x the spacing between slices 2 and 3"):
        _dicom(files)
    # The ramp is linear along the normal, so interpolation finds what is missing.
    np.testing.assert_allclose(_dicom(files, uneven="resample").pixels, SHOWN, atol=1e-6)


def test_each_slice_goes_through_its_own_rescale_and_the_volume_through_one_window() -> None:
    slopes = [1, 2, 3, 4, 5]
    files = [
        slice_file(one, place, RescaleSlope=slope, RescaleIntercept=-slope, WindowCenter=center, WindowWidth=200)
        for one, place, slope, center in zip(RAMP, heights(5), slopes, [0, 0, 77, 0, 0], strict=True)
    ]
    measured = RAMP * np.array(slopes)[:, None, None] - np.array(slopes)[:, None, None]
    expected = np.clip((measured - 76.5) / 199 + 0.5, 0, 1)
    np.testing.assert_allclose(_dicom(files[::-1]).pixels[..., 0], expected, atol=1e-6)


def test_a_slice_alone_is_shown_as_in_a_volume_of_its_window() -> None:
    files = series(RAMP, WindowCenter=[40, 10], WindowWidth=[80, 20], PhotometricInterpretation="MONOCHROME1")
    for window in (0, 1, "narrowest"):
        options = DecodeOptions(window=window)  # type: ignore[arg-type]
        volume = decode_volume(files, format="dicom", options=options)
        for place, file in enumerate(files):
            alone = decode_image(file, format="dicom", options=options)
            np.testing.assert_allclose(volume.pixels[place, ..., 0], alone, atol=1e-6)


def test_a_range_in_the_modalitys_unit_goes_before_every_window() -> None:
    expected = np.clip((RAMP * 2.0 - 5 - 10) / 40, 0, 1)[..., None]
    files = series(RAMP, RescaleSlope=2, RescaleIntercept=-5, WindowCenter=0, WindowWidth=5)
    np.testing.assert_allclose(_dicom(files, range=(10, 50)).pixels, expected, atol=1e-6)
    scaled = nifti(RAMP, scl_slope=2, scl_inter=-5)
    np.testing.assert_allclose(_nifti(scaled, range=(10, 50)).pixels, expected, atol=1e-6)


def test_padding_is_dark_whatever_the_window() -> None:
    padded = RAMP.copy()
    padded[:, 0, 0] = -2000
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        files = series(padded, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        volume = _dicom(files).pixels[..., 0]
        assert (volume[:, 0, 0] == 0).all()
        assert volume[:, 1:].max() > 0.8
    assert _dicom(series(np.full_like(RAMP, -5), PixelPaddingValue=-5)).pixels.max() == 0


def test_a_flat_volume_is_dark() -> None:
    flat = np.full_like(RAMP, 7)
    assert _dicom(series(flat)).pixels.max() == _nifti(nifti(flat)).pixels.max() == 0


def _mixed(place: int, **elements: Any) -> list[bytes]:
    """A series one slice of which is different."""
    files = series(RAMP)
    files[place] = slice_file(RAMP[place], heights(5)[place], **elements)
    return files


def _table() -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", "SS", [256, -128, 16])
    table.add_new("LUTData", "US", list(range(256)))
    return table


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (_mixed(2, ImageOrientationPatient=[0.0, 1, 0, 0, 0, -1]), "2 orientations (a scout among them?)"),
        (_mixed(2, PixelSpacing=[0.75, 0.6]), "its slices have 2 pixel spacings"),
        (_mixed(2, PhotometricInterpretation="MONOCHROME1"), "its slices have 2 photometric interpretations"),
        (_mixed(2, ImagePositionPatient=None), "do not all say where they lie"),
        (_mixed(2, ModalityLUTSequence=[_table()]), "some of its slices have a modality table, others have not"),
        (_mixed(1, PixelData=b"\0\0"), "the pixel data ends early: 2 of 48 bytes are there"),
        (_mixed(4, PhotometricInterpretation="PALETTE COLOR"), "its slices have 2 photometric interpretations"),
        (series(RAMP)[:1], "a series of one slice, which is no volume"),
        (series(RAMP, heights(4) + heights(1)), "1 slice doubled of 5: slices 1 and 2 lie at one position"),
        (series(RAMP, [(-0.5 * i, 0, 2.0 * i) for i in range(5)]), "stacked at 14.0 degrees to their normal"),
        ([b"", *series(RAMP)], "the DICOM"),
    ],
)  # fmt: skip
def test_a_series_that_is_no_volume_is_refused_with_the_reason(files: list[bytes], expected: str) -> None:
    for uneven in ("reject", "resample"):
        with _refused(expected) as caught:
            _dicom(files, uneven=uneven)
        assert "MUSTERMANN" not in str(caught.value)


def test_the_caps_hold_for_volumes() -> None:
    for decode in (lambda: _dicom(series(RAMP), voxels=119), lambda: _nifti(nifti(RAMP), voxels=119)):
        with _refused("a volume of 5 x 4 x 6 voxels, more than the 119 allowed (archive.caps.voxels)"):
            decode()
    files = series(RAMP)
    del files[2]
    with _refused("archive.caps.voxels"):  # of what is resampled, not of what is there
        _dicom(files, voxels=119, uneven="resample")


def test_a_multi_frame_file_is_a_volume_by_the_places_of_its_frames() -> None:
    order = [3, 0, 4, 1, 2]
    places = heights(5)
    volume = _dicom([enhanced(RAMP[order], [places[index] for index in order])])
    np.testing.assert_allclose(volume.pixels, SHOWN, atol=1e-6)
    assert volume.spacing == SPACING
    with _refused("its 5 frames do not say where they lie (PlanePositionSequence)"):
        _dicom([enhanced(RAMP, None)])
    with _refused("1 slice doubled of 5"):
        _dicom([enhanced(RAMP, places[:4] + places[:1])])


def test_packed_nifti_and_nifti_2_are_read_too() -> None:
    image = nifti_image(RAMP)
    second = Nifti2Image(np.asarray(image.dataobj), image.affine).to_bytes()
    members = gzip.compress(nifti(RAMP)[:500]) + gzip.compress(nifti(RAMP)[500:])
    for payload in (gzip.compress(nifti(RAMP)), members, second, gzip.compress(second)):
        np.testing.assert_array_equal(_nifti(payload).pixels, _nifti(nifti(RAMP)).pixels)


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f8"])
def test_every_type_of_number_is_read(dtype: str) -> None:
    values = (RAMP + 20).astype(dtype)
    image = nifti_image(RAMP)
    order = "<" if sys.byteorder == "little" else ">"
    header = image.header.as_byteswapped(values.dtype.byteorder if values.dtype.byteorder in "<>" else order)
    swapped = Nifti1Image(values.transpose(2, 1, 0), image.affine, header, dtype=values.dtype)
    np.testing.assert_allclose(_nifti(swapped.to_bytes()).pixels, SHOWN, atol=1e-6)


def test_an_oblique_nifti_file_is_turned_to_the_closest_axes() -> None:
    image = nifti_image(RAMP)
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ image.affine[:3, :3]
    volume = _nifti(Nifti1Image(np.asarray(image.dataobj), affine).to_bytes())
    np.testing.assert_allclose(volume.pixels, SHOWN, atol=1e-6)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-6)


def test_units_other_than_millimetres_are_turned_into_them() -> None:
    for unit, factor in (("micron", 0.001), ("meter", 1000.0), ("unknown", 1.0)):
        image = nifti_image(RAMP)
        image.header.set_xyzt_units(unit)
        np.testing.assert_allclose(_nifti(image.to_bytes()).spacing, np.array(SPACING) * factor, rtol=1e-6)


def _of(values: Array, affine: Any = None) -> bytes:
    return Nifti1Image(values, np.diag([-1.0, -1, 1, 1]) if affine is None else affine).to_bytes()


def _spoilt(value: float) -> bytes:
    values = RAMP.astype(np.float32)
    values[1, 2, 3] = value
    return nifti(values)


_SHEARED = np.array([[1.0, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (nifti(RAMP)[:-1], "the voxel data ends early: 591 of 592 bytes are there"),
        (gzip.compress(nifti(RAMP))[:-20], "the packed file ends early"),
        (gzip.compress(nifti(RAMP))[:-8] + b"\0" * 8, "the packed file is damaged"),
        (gzip.compress(nifti(RAMP)[:-1]), "the voxel data ends early: 591 of 592"),
        (nifti(RAMP, dim=[3, 6, 4, 500, 1, 1, 1, 1]), "the voxel data ends early: 592 of 24352 bytes are there"),
        (nifti(RAMP, dim=[3, 6, 4, 0, 1, 1, 1, 1]), "a volume without voxels"),
        (nifti(RAMP, dim=[3, 6, -4, 5, 1, 1, 1, 1]), "a volume without voxels"),
        (nifti(RAMP, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "more than the 1073741824 allowed (archive.caps"),
        (nifti(RAMP, vox_offset=8), "no usable place of its voxels"),
        (nifti(RAMP, vox_offset=np.nan), "the NIfTI header is damaged: its place of its voxels cannot be read"),
        (nifti(RAMP, datatype=77), "the NIfTI header is damaged: its type of voxel cannot be read"),
        (nifti(RAMP, magic=b"ni1"), "the header of a NIfTI pair (.hdr and .img)"),
        (nifti(RAMP, sform_code=0, qform_code=0), "does not say how it lies in the patient"),
        (nifti(np.full((4, 4, 4), 1e300), scl_slope=1e38), "too large to reckon with"),
        (_spoilt(np.nan), "1 of its voxels are not numbers (NaN or infinite)"),
        (_spoilt(-np.inf), "1 of its voxels are not numbers (NaN or infinite)"),
        (_of(np.zeros((4, 4, 4, 20), np.float32)), "20 volumes in one file (time points, perhaps); expected one"),
        (_of(np.zeros((4, 4, 4, 1, 3), np.float32)), "3 volumes in one file"),
        (_of(np.zeros((4, 4), np.float32)), "a single slice in a NIfTI file, which is no volume"),
        (_of(np.zeros((4, 4, 1), np.float32)), "a single slice in a NIfTI file, which is no volume"),
        (_of(np.zeros((4, 4, 4), np.complex64)), "its voxels are complex numbers"),
        (_of(np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "its voxels are colours"),
        (_of(np.zeros((4, 4, 4), np.float32), _SHEARED), "the volume is sheared"),
    ],
)  # fmt: skip
def test_a_nifti_file_that_is_no_volume_is_refused_with_the_reason(payload: bytes, expected: str) -> None:
    with _refused(expected):
        _nifti(payload)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(nifti(np.zeros((200, 200, 200), np.int16)))
    assert len(bomb) < 50_000
    with _refused("more than 200 times its size, like a bomb; archive.caps.ratio allows more"):
        _nifti(bomb)
    assert _nifti(bomb, ratio=2000.0).pixels.shape == (200, 200, 200, 1)
    with _refused("it unpacks to 16000352 bytes, more than the 1000000 allowed (archive.caps.file_bytes)"):
        _nifti(bomb, file_bytes=1_000_000)
    # What the header does not declare is not unpacked at all.
    trailing = gzip.compress(nifti(RAMP) + bytes(50 << 20))
    np.testing.assert_array_equal(_nifti(trailing).pixels, _nifti(nifti(RAMP)).pixels)


@settings(max_examples=400)
@given(
    places=st.lists(st.integers(0, 351), min_size=1, max_size=6),
    values=st.lists(st.integers(0, 255), min_size=6, max_size=6),
    packed=st.booleans(),
)
def test_a_damaged_header_is_a_volume_or_a_reason(places: list[int], values: list[int], packed: bool) -> None:
    payload = bytearray(nifti(RAMP))
    for place, value in zip(places, values, strict=False):
        payload[place] = value
    damaged = gzip.compress(payload) if packed else bytes(payload)
    for read in (
        lambda: read_header(Stream(io.BytesIO(damaged)), ArchiveCaps()),
        lambda: _nifti(damaged, voxels=1 << 16, file_bytes=1 << 20),
    ):
        with suppress(ImageError):
            read()


@pytest.mark.parametrize("name", ["anatomical.nii", "standard.nii.gz", "reoriented_anat_moved.nii"])
def test_real_nifti_files_are_what_nibabel_reads(name: str) -> None:
    path = Path(nibabel.__file__).parent / "tests" / "data" / name
    image = nibabel.load(path)
    canonical = nibabel.as_closest_canonical(image)
    values = np.flip(canonical.get_fdata(), (0, 1)).transpose(2, 1, 0)  # from RAS to LPS, z first
    volume = _nifti(path.read_bytes())
    np.testing.assert_allclose(volume.pixels[..., 0], (values - values.min()) / np.ptp(values), atol=1e-6)
    np.testing.assert_allclose(volume.spacing, canonical.header.get_zooms()[::-1], rtol=1e-6)


def test_formats_that_hold_no_volumes_are_a_fault_of_the_caller() -> None:
    for files, format in (([b""], "png"), ([b"", b""], "nifti")):
        with pytest.raises(ValueError, match="expected dicom, or nifti in one file"):
            decode_volume(files, format=format)
