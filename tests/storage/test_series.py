"""A catalogue of volumes: one row a series or file, found by position, and one reason for what is none."""

import gzip
import random
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.archive import Archive, ArchiveCaps, ArchiveFile
from storage.catalogue import Located, assemble, catalogue_rows, decoded_bytes
from storage.decode import decode_volume
from storage.identity import Identity
from storage.labels import Label
from storage.records import CatalogueRow
from storage.series import assemble_volumes, catalogue_slices
from tests.storage.sample_files import dicom, raster, zipped
from tests.storage.volume_files import SPACING, acquired, enhanced, heights, nifti, ramp, series, slice_file

IDENTITY = Identity(b"k" * 32)
RAMP = ramp()
ALONE = "archive.images: frames takes images one by one"


def _archive(folder: Path, files: Mapping[str, bytes], **caps: Any) -> Archive:
    for name, payload in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(payload)
    return Archive.open(str(folder), caps=ArchiveCaps(**caps))


def _catalogue(
    archive: Archive, labels: Mapping[str, Label] | None = None, **options: Any
) -> tuple[list[CatalogueRow], list[Located]]:
    files = [found for found in archive.files() if isinstance(found, ArchiveFile)]
    rows, slices, rejections = catalogue_slices(archive, files, identity=IDENTITY, labels=labels)
    usual: dict[str, Any] = {"uneven": "reject", "voxels": archive.caps.voxels}
    volumes, faults = assemble_volumes(slices, identity=IDENTITY, **(usual | options))
    return rows + volumes, rejections + faults


def _reasons(rejections: list[Located]) -> dict[str, str]:
    return {location: rejection.reason for rejection, location in rejections}


def _named(names: str, files: list[bytes]) -> dict[str, bytes]:
    return {f"{name}.dcm": payload for name, payload in zip(names, files, strict=True)}


def test_a_series_is_one_row_whatever_its_files_are_called(tmp_path: Path) -> None:
    archive = _archive(tmp_path, _named("dbeac", series(RAMP, InstanceNumber=7, BurnedInAnnotation="NO")))
    (row,), rejections = _catalogue(archive)
    assert rejections == []
    assert row == CatalogueRow(
        id=IDENTITY.image("a.dcm"),
        patient=IDENTITY.patient("MUSTERMANN"),
        format="dicom",
        modality="CT",
        frame=0,
        frames=1,
        depth=5,
        height=4,
        width=6,
        channels=1,
        bits=16,
        spacing=SPACING,
        burned_in=False,
        labels=None,
        boxes=None,
        split=None,
        private_location="a.dcm",
        private_bytes=sum((tmp_path / name).stat().st_size for name in ("a.dcm", "b.dcm", "c.dcm", "d.dcm", "e.dcm")),
        private_slices=("d.dcm", "b.dcm", "e.dcm", "a.dcm", "c.dcm"),
    )


def test_the_catalogue_says_the_shape_that_is_decoded(tmp_path: Path) -> None:
    files = {f"s/{i}.dcm": payload for i, payload in enumerate(acquired(RAMP, (0, 1, 0), (0, 0, -1)))}
    files |= {"v.nii": nifti(RAMP), "w.nii.gz": gzip.compress(nifti(RAMP)), "m.dcm": enhanced(RAMP, heights(5))}
    archive = _archive(tmp_path, files)
    rows, _ = _catalogue(archive)
    assert len(rows) == 4
    for row in rows:
        payloads = dict(archive.read(row.private_slices or [row.private_location]))
        volume = decode_volume([p for p in payloads.values() if isinstance(p, bytes)], format=row.format)
        assert (row.depth, row.height, row.width, 1) == volume.pixels.shape
        assert row.spacing == (None if row.private_location == "m.dcm" else volume.spacing)
    table = assemble(rows, [], shard_images=4, shard_bytes=1 << 20)
    assert decoded_bytes(table).tolist() == [5 * 4 * 6 * 4] * 4
    assert catalogue_rows(table) == sorted(rows, key=lambda row: row.private_location)


def test_several_series_are_told_apart_and_each_fault_costs_its_own_series(tmp_path: Path) -> None:
    files = {f"x/{i}.dcm": p for i, p in enumerate(series(RAMP))}
    files |= {f"y/{i}.dcm": p for i, p in enumerate(series(RAMP, SeriesInstanceUID="1.2.5")) if i != 2}
    files |= {f"z/{i}.dcm": p for i, p in enumerate(series(RAMP, SeriesInstanceUID="1.2.6"))}
    files |= {"z/scout.dcm": slice_file(RAMP[0], (0, 0, 0), SeriesInstanceUID="1.2.6",
                                        ImageOrientationPatient=[1.0, 0, 0, 0, 0, -1])}  # fmt: skip
    files |= {"one.dcm": slice_file(RAMP[0], (0, 0, 0), SeriesInstanceUID="1.2.7")}
    archive = _archive(tmp_path, files)
    rows, rejections = _catalogue(archive)
    assert [row.private_location for row in rows] == ["x/0.dcm"]
    assert _reasons(rejections) == {
        "y/0.dcm": "1 slice missing of 5: a gap of 2.0 x the spacing between slices 2 and 3. "
        "archive.uneven: resample interpolates",
        "z/0.dcm": "its slices have 2 orientations (a scout among them?)",
        "one.dcm": f"a series of one slice, which is no volume; {ALONE}",
    }
    assert {rejection.id for rejection, _ in rejections} == {IDENTITY.image(location) for _, location in rejections}
    rows, rejections = _catalogue(archive, uneven="resample")
    assert sorted((row.private_location, row.depth, len(row.private_slices or ())) for row in rows) == [
        ("x/0.dcm", 5, 5),
        ("y/0.dcm", 5, 4),
    ]


def test_files_that_belong_to_no_volume_are_rejected_one_by_one(tmp_path: Path) -> None:
    archive = _archive(
        tmp_path,
        {
            "a.png": raster("PNG"),
            "x.zip": zipped({"in.tif": raster("TIFF")}),
            "chest1.dcm": slice_file(RAMP[0], None, Modality="DX", ImageOrientationPatient=None),
            "chest2.dcm": slice_file(RAMP[0], None, Modality="DX", ImageOrientationPatient=None),
            "nameless.dcm": slice_file(RAMP[0], (0, 0, 0), SeriesInstanceUID=None),
            "cine.dcm": dicom(frames=3, SamplesPerPixel=3, PhotometricInterpretation="RGB", PixelData=bytes(216)),
            "time.nii": nifti(RAMP, dim=[4, 6, 4, 5, 9, 1, 1, 1]),
            "broken.dcm": b"",
        },
    )
    rows, rejections = _catalogue(archive)
    assert rows == []
    assert _reasons(rejections) == {
        "a.png": f"a picture (PNG), which belongs to no volume; {ALONE}",
        "x.zip!/in.tif": f"a picture (TIFF), which belongs to no volume; {ALONE}",
        "chest1.dcm": f"no position where slices have it, as X-rays and single enhanced frames; {ALONE}",
        "chest2.dcm": f"no position where slices have it, as X-rays and single enhanced frames; {ALONE}",
        "nameless.dcm": f"its header names no series, so that it belongs to no volume; {ALONE}",
        "cine.dcm": f"colour images, which make no volume; {ALONE}",
        "time.nii": "9 volumes in one file (time points, perhaps); expected one",
        "broken.dcm": "the file is empty",
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ImagePositionPatient": None}, "its slices do not all say where they lie in the patient (Image"),
        ({"ImagePositionPatient": [0.0, 0.0]}, "its slices do not all say where they lie in the patient"),
        ({"PixelSpacing": [0.75, 0.75]}, "its slices have 2 pixel spacings"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "its slices have 2 different photometric interpretations"),
        ({"FrameOfReferenceUID": "1.2.77"}, "its slices have 2 different frames of reference"),
        ({"PatientID": "ANOTHER"}, "its slices have 2 different patients"),
        ({"Modality": "PT"}, "its slices have 2 different modalities"),
        ({"Rows": 2}, "its slices have 2 sizes in pixels"),
        ({"SamplesPerPixel": 3}, "colour images, which make no volume"),
    ],
)  # fmt: skip
def test_a_series_one_slice_of_which_differs_is_rejected_as_a_whole(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    files = series(RAMP)
    files[3] = slice_file(RAMP[3], heights(5)[3], **change)
    rows, rejections = _catalogue(_archive(tmp_path, _named("abcde", files)))
    assert rows == []
    ((location, reason),) = _reasons(rejections).items()
    assert (location, reason[: len(expected)]) == ("a.dcm", expected)


def test_labels_of_slices_are_their_volumes(tmp_path: Path) -> None:
    files = {f"x/{i}.dcm": p for i, p in enumerate(series(RAMP))}
    files |= {f"y/{i}.dcm": p for i, p in enumerate(series(RAMP, SeriesInstanceUID="1.2.5"))}
    files["z.nii"] = nifti(RAMP)
    archive = _archive(tmp_path, files)
    mass = Label(("Mass", "Nodule"), "train", "P1")
    labels = {"x/3.dcm": mass, "z.nii": Label((), "test"), **{f"y/{i}.dcm": Label(("Mass",)) for i in range(5)}}
    rows, _ = _catalogue(archive, labels)
    assert {row.patient for row in rows} == {IDENTITY.patient("P1"), IDENTITY.patient("MUSTERMANN"), None}
    found = {row.private_location: (row.labels, row.split) for row in rows}
    assert found == {"x/0.dcm": (("Mass", "Nodule"), "train"), "y/0.dcm": (("Mass",), None), "z.nii": ((), "test")}

    for other, expected in [
        (Label(("Mass",), "train", "P1"), "labels"),
        (Label((), "train", "P1"), "labels"),
        (Label(("Mass", "Nodule"), "test", "P1"), "splits"),
    ]:
        rows, rejections = _catalogue(archive, labels | {"x/4.dcm": other})
        assert _reasons(rejections) == {"x/0.dcm": f"its slices have 2 different {expected}"}
        assert len(rows) == 2
    _, rejections = _catalogue(archive, {f"x/{i}.dcm": Label(patient=f"P{i}") for i in range(5)})
    assert _reasons(rejections) == {"x/0.dcm": "its slices have 5 different patients in the label file"}


def test_a_split_is_of_series_one_slice_of_which_is_in_it(tmp_path: Path) -> None:
    files = {f"x/{i}.dcm": p for i, p in enumerate(series(RAMP))}
    files |= {f"y/{i}.dcm": p for i, p in enumerate(series(RAMP, SeriesInstanceUID="1.2.5"))}
    archive = _archive(tmp_path, files)
    labels = {"x/3.dcm": Label((), "test"), "y/0.dcm": Label((), "train"), "y/1.dcm": Label((), "test")}
    rows, rejections = _catalogue(archive, labels, split="test")
    assert [row.private_location for row in rows] == ["x/0.dcm"]
    assert _reasons(rejections) == {"y/0.dcm": "its slices have 2 different splits"}
    assert _catalogue(archive, labels, split="validation") == ([], [])

    chests = {f"c{i}.dcm": slice_file(RAMP[0], None, SeriesInstanceUID="1.2.8") for i in range(2)}
    archive = _archive(tmp_path / "chests", chests)
    rows, rejections = _catalogue(archive, {"c1.dcm": Label((), "test")}, split="test")
    assert (rows, list(_reasons(rejections))) == ([], ["c1.dcm"])


def test_caps_count_depth(tmp_path: Path) -> None:
    files = {f"{i}.dcm": p for i, p in enumerate(series(RAMP))} | {"v.nii": nifti(RAMP)}
    archive = _archive(tmp_path, files | {"m.dcm": enhanced(RAMP, heights(5))}, voxels=119)
    rows, rejections = _catalogue(archive)
    assert rows == []
    reason = "a volume of 5 x 4 x 6 voxels, more than the 119 allowed (archive.caps.voxels)"
    assert _reasons(rejections) == {"0.dcm": reason, "v.nii": reason, "m.dcm": reason}


def test_a_packed_bomb_is_rejected_by_its_header(tmp_path: Path) -> None:
    bomb = gzip.compress(nifti(np.zeros((200, 200, 200), np.int16)))
    rows, rejections = _catalogue(_archive(tmp_path, {"v.nii.gz": bomb}))
    assert rows == []
    assert "like a bomb" in _reasons(rejections)["v.nii.gz"]
    _, rejections = _catalogue(_archive(tmp_path, {"v.nii.gz": bomb}, file_bytes=10_000_000))
    assert "it unpacks to 16000352 bytes, more than the 10000000 allowed" in _reasons(rejections)["v.nii.gz"]


def test_neither_series_nor_patients_show_outside_private_columns(tmp_path: Path) -> None:
    uid = "1.2.826.0.1.3680043.8.498.7777"
    archive = _archive(tmp_path, {f"{i}.dcm": p for i, p in enumerate(series(RAMP, SeriesInstanceUID=uid))})
    files = [found for found in archive.files() if isinstance(found, ArchiveFile)]
    _, slices, _ = catalogue_slices(archive, files, identity=IDENTITY)
    assert uid not in str(slices.to_pylist())
    assert "MUSTERMANN" not in str(slices.to_pylist())
    table = assemble(*_catalogue(archive), shard_images=4, shard_bytes=1 << 20)
    public = [name for name in table.column_names if not name.startswith("private_")]
    assert ".dcm" not in str(table.select(public).to_pylist())


def test_the_order_in_which_slices_arrive_does_not_show(tmp_path: Path) -> None:
    files = {f"x/{i}.dcm": p for i, p in enumerate(series(RAMP))}
    files |= {f"y/{i}.dcm": p for i, p in enumerate(series(RAMP, SeriesInstanceUID="1.2.5"))}
    archive = _archive(tmp_path, files)
    found = [file for file in archive.files() if isinstance(file, ArchiveFile)]
    _, slices, _ = catalogue_slices(archive, found, identity=IDENTITY)
    expected = assemble_volumes(slices, identity=IDENTITY, uneven="reject", voxels=1000)
    order = list(range(10))
    for seed in range(5):
        random.Random(seed).shuffle(order)
        assert assemble_volumes(slices.take(order), identity=IDENTITY, uneven="reject", voxels=1000) == expected


def test_real_series_are_volumes_or_rejected_for_what_is_wrong_with_them() -> None:
    spec = find_spec("pydicom")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "data" / "test_files" / "dicomdirtests"
    archive = Archive.open(str(folder), include=["98892001", "98892003", "77654033"])
    rows, rejections = _catalogue(archive)
    # A head CT of five slices; file names go against the positions.
    assert [(row.modality, row.depth, row.height, row.width, row.spacing) for row in rows] == [
        ("CT", 5, 16, 16, (2.5, 0.488281, 0.488281))
    ]
    reasons = _reasons(rejections)
    assert reasons["98892001/CT2N/6293"] == "its slices have 2 orientations (a scout among them?)"
    assert reasons["98892003/MR700/4467"] == "its slices have 7 orientations (a scout among them?)"
    assert reasons["77654033/CT2/17106"].startswith("161 slices missing of 165")
    assert "as X-rays" in reasons["77654033/CR1/6154"]
    files = [file for file in archive.files() if isinstance(file, ArchiveFile)]
    assert sum(len(row.private_slices or ()) for row in rows) + len(rejections) <= len(files)
