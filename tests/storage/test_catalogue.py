"""A catalogue has one row an image, the same on every machine, and loses nothing that was found."""

import gzip
import os
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.archive import Archive, ArchiveCaps, ArchiveFile
from storage.catalogue import (
    CATALOGUE_SCHEMA,
    Located,
    assemble,
    catalogue_files,
    catalogue_rows,
    chosen_frames,
    readable_count,
    rejected_table,
    shard_images,
    shard_length,
)
from storage.identity import Identity
from storage.labels import Label
from storage.records import CatalogueRow
from tests.storage.sample_files import dicom, raster, zipped
from tests.storage.volume_files import nifti, ramp

IDENTITY = Identity(b"k" * 32)
CANARY = "MUSTERMANN"


def _files(archive: Archive) -> list[ArchiveFile]:
    return [found for found in archive.files() if isinstance(found, ArchiveFile)]


def _mixed(folder: Path) -> Archive:
    members = {"in.dcm": dicom(frames=4), "bad.dcm": b"", "in.png": raster("PNG", "RGB")}
    for name, payload in {"b.dcm": dicom(PatientID=CANARY), "x.zip": zipped(members), "notes.txt": b"hi"}.items():
        (folder / name).write_bytes(payload)
    return Archive.open(str(folder))


def _catalogue(archive: Archive) -> tuple[list[CatalogueRow], list[Located]]:
    return catalogue_files(archive, _files(archive), identity=IDENTITY, frames="all")


def test_every_file_is_a_row_or_a_rejection(tmp_path: Path) -> None:
    archive = _mixed(tmp_path)
    rows, rejections = _catalogue(archive)
    assert sorted({row.private_location for row in rows} | {location for _, location in rejections}) == sorted(
        file.location for file in _files(archive)
    )
    assert [row.frame for row in rows if row.private_location == "x.zip!/in.dcm"] == [0, 1, 2, 3]
    assert {location: rejection.reason for rejection, location in rejections} == {
        "notes.txt": "a text file; expected DICOM, PNG, JPEG, TIFF or NIfTI",
        "x.zip!/bad.dcm": "the file is empty",
    }


def test_labels_and_patients_reach_their_rows(tmp_path: Path) -> None:
    archive = _mixed(tmp_path)
    rows, _ = catalogue_files(
        archive,
        _files(archive),
        identity=IDENTITY,
        frames="middle",
        labels={"x.zip!/in.png": Label(("Mass",), "train", "P1"), "b.dcm": Label(())},
    )
    found = {row.private_location: row for row in rows}
    assert found["x.zip!/in.png"].labels == ("Mass",)
    assert found["x.zip!/in.png"].split == "train"
    assert found["x.zip!/in.png"].patient == IDENTITY.patient("P1")
    assert found["b.dcm"].labels == ()
    assert found["b.dcm"].patient == IDENTITY.patient(CANARY)
    assert (found["x.zip!/in.dcm"].labels, found["x.zip!/in.dcm"].frame) == (None, 2)


def test_only_private_columns_know_where_an_image_lies(tmp_path: Path) -> None:
    (tmp_path / CANARY).mkdir()
    (tmp_path / CANARY / f"{CANARY}.dcm").write_bytes(
        dicom(PatientID=CANARY, PatientName=CANARY, StudyDescription=CANARY, InstitutionName=CANARY)
    )
    (tmp_path / f"{CANARY}.txt").write_text(CANARY)
    table = assemble(*_catalogue(Archive.open(str(tmp_path))), shard_images=4, shard_bytes=1 << 20)
    public = [name for name in table.column_names if not name.startswith("private_")]
    assert CANARY not in str(table.select(public).to_pylist())
    assert CANARY in str(table["private_location"].to_pylist())


@given(order=st.randoms(use_true_random=False))
def test_the_order_in_which_rows_arrive_does_not_show(
    tmp_path_factory: pytest.TempPathFactory, order: random.Random
) -> None:
    rows, rejections = _catalogue(_mixed(tmp_path_factory.mktemp("archive")))
    expected = assemble(rows, rejections, shard_images=2, shard_bytes=1 << 20)
    order.shuffle(rows)
    order.shuffle(rejections)
    assert assemble(rows, rejections, shard_images=2, shard_bytes=1 << 20).equals(expected, check_metadata=True)


def test_readable_rows_come_first_numbered_in_shards_and_unreadable_ones_follow(tmp_path: Path) -> None:
    rows, rejections = _catalogue(_mixed(tmp_path))
    table = assemble(rows, rejections, shard_images=4, shard_bytes=1 << 20)
    assert table.schema.equals(CATALOGUE_SCHEMA)
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert table["shard"].to_pylist() == [0, 0, 0, 0, 1, 1, -1, -1]
    assert (readable_count(table), shard_images(table)) == (6, 4)
    located = list(zip(table["private_location"].to_pylist(), table["frame"].to_pylist(), strict=True))
    assert located[:6] == sorted(located[:6])
    assert set(table["id"].to_pylist()[6:]) == {rejection.id for rejection, _ in rejections}
    assert len(set(table["id"].to_pylist())) == len(table)


def test_rows_come_back_from_the_table_as_they_went_in(tmp_path: Path) -> None:
    rows, rejections = _catalogue(_mixed(tmp_path))
    table = assemble(rows, rejections, shard_images=4, shard_bytes=1 << 20)
    ordered = sorted(rows, key=lambda row: (row.private_location, row.frame))
    assert catalogue_rows(table) == ordered
    assert catalogue_rows(table, 2, 5) == ordered[2:5]
    assert catalogue_rows(table, 5, 100) == ordered[5:]


def test_an_archive_without_one_readable_image_still_makes_a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hi")
    rows, rejections = _catalogue(Archive.open(str(tmp_path)))
    table = assemble(rows, rejections, shard_images=4, shard_bytes=1)
    assert (len(table), readable_count(table), catalogue_rows(table)) == (1, 0, [])
    assert rejected_table(rejection for rejection, _ in rejections)["stage"].to_pylist() == ["catalogue"]


@given(
    sizes=st.lists(st.integers(1, 1000), max_size=60),
    images=st.integers(1, 64),
    limit=st.integers(1, 5000),
)
def test_a_shard_is_as_long_as_its_bytes_allow_and_no_longer(sizes: list[int], images: int, limit: int) -> None:
    decoded = np.array(sizes, dtype=np.int64)

    def largest(length: int) -> int:
        return max((sum(sizes[start : start + length]) for start in range(0, len(sizes), length)), default=0)

    length = shard_length(decoded, shard_images=images, shard_bytes=limit)
    halvings = [images >> step for step in range(images.bit_length())]
    assert length == next((option for option in halvings if largest(option) <= limit), 1)


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [
        (1, "middle", [0]),
        (5, "middle", [2]),
        (6, "middle", [3]),
        (4, "all", [0, 1, 2, 3]),
        (7, 3, [0, 3, 6]),
        (1, 9, [0]),
    ],
)
def test_frames_are_chosen_as_configured(count: int, frames: str | int, expected: list[int]) -> None:
    assert list(chosen_frames(count, frames)) == expected  # type: ignore[arg-type]


def test_a_file_over_the_size_cap_is_rejected_by_its_listing(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(rows=100, columns=100))
    archive = Archive.open(str(tmp_path), caps=ArchiveCaps(file_bytes=5000))
    rows, ((rejection, _),) = _catalogue(archive)
    assert rows == []
    assert "more than the 5000 allowed" in rejection.reason


@pytest.mark.parametrize(("package", "below", "files"), [("pydicom", "data", 200), ("data_store", "data", 60)])
def test_every_real_test_file_is_a_row_or_a_rejection_that_a_person_understands(
    package: str, below: str, files: int
) -> None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    archive = Archive.open(os.path.join(spec.submodule_search_locations[0], below), exclude=["*.py", "__pycache__"])
    rows, rejections = catalogue_files(archive, _files(archive), identity=IDENTITY)
    assert len(rows) + len(rejections) == len(_files(archive)) >= files
    understood = (
        "a text file; expected",
        "a gzip-compressed file; expected",
        "not an image this reads by its content; expected",
        "a DICOM file without an image in it (",
        "the DICOM header gives no usable",
        "the file is empty",
    )
    assert [rejection.reason for rejection, _ in rejections if not rejection.reason.startswith(understood)] == []
    assert isinstance(assemble(rows, rejections, shard_images=16, shard_bytes=512 << 20), pa.Table)


def test_a_catalogue_of_images_names_the_key_that_takes_volumes_and_keeps_the_spacing(tmp_path: Path) -> None:
    for name, payload in {"v.nii": nifti(ramp()), "v.nii.gz": gzip.compress(nifti(ramp()))}.items():
        (tmp_path / name).write_bytes(payload)
    (tmp_path / "a.dcm").write_bytes(dicom(PixelSpacing=[0.75, 0.5]))
    (row,), rejections = _catalogue(Archive.open(str(tmp_path)))
    assert (row.depth, row.spacing, row.private_slices) == (1, (0.75, 0.5), None)
    assert {rejection.reason for rejection, _ in rejections} == {"a volume (NIfTI): set archive.images: volumes"}
    assert len(rejections) == 2
