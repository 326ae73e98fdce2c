"""An archive of volumes from its files to decoded blocks: many tasks read slices, one row and one array come out."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.catalogue import catalogue_rows, readable_count, shard_images
from storage.errors import ArchiveError, ConfigurationError
from storage.objects import Objects
from storage.tables import write_table
from tests.storage.sample_files import raster, tarred, zipped
from tests.storage.volume_files import SPACING, acquired, nifti, ramp, series, slice_file
from workflows import cataloguing, configuration
from workflows.cataloguing import BuiltCatalogue, build_catalogue, decode_options, open_archive
from workflows.configuration import check
from workflows.images import Images
from workflows.progress import SilentProgress
from workflows.shards import ShardReader
from workflows.survey import archive_facts

pytestmark = pytest.mark.usefixtures("shared_ray")

KEY = "k" * 32
RAMP = ramp()
SHOWN = ((RAMP - RAMP.min()) / np.ptp(RAMP)).astype(np.float32)[..., None]


def _folder(name: str, files: list[bytes]) -> dict[str, bytes]:
    return {f"{name}/{place}.dcm": payload for place, payload in enumerate(files)}


def _series(number: int, **elements: Any) -> list[bytes]:
    return series(RAMP, SeriesInstanceUID=f"1.2.3.{number}", **elements)


# Two series in one folder of a zip, their files in turn: each waits for the files of the other.
_SAGITTAL = acquired(RAMP, (0, 1, 0), (0, 0, -1), SeriesInstanceUID="1.2.3.4")
_IN_TURN = {
    f"b/{place}-{name}.dcm": files[place]
    for place in range(6)
    for name, files in (("sagittal", _SAGITTAL), ("axial", _series(5)))
    if place < len(files)
}
FILES = {
    **_folder("train/Mass/p1", _series(1)[::-1]),
    **_folder("train/Mass/p2", _series(2, PatientID="P2")[1:]),
    **_folder("gap", _series(3)[:2] + _series(3)[3:]),
    "mixed/scout.dcm": slice_file(RAMP[0], (0, 0, 0), SeriesInstanceUID="1.2.3.7"),
    "chest.png": raster("PNG"),
    "v/one.nii": nifti(RAMP),
    "v/two.nii.gz": gzip.compress(nifti(RAMP)),
    "v/cut.nii": nifti(RAMP)[:-1],
    "z.zip": zipped(_IN_TURN),
    "t.tar.gz": tarred(_folder("t", _series(6)), mode="w:gz"),
}
VOLUMES = 8  # p1, p2, one, two, cut, both of the zip, t


@pytest.fixture
def section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An archive on disk and the section of the configuration that describes it."""
    monkeypatch.setenv("AUDIT_KEY", KEY)
    monkeypatch.setattr(cataloguing, "_CHUNK_FILES", 3)  # slices of one series come from several tasks
    for name, payload in FILES.items():
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    return {"location": str(tmp_path / "archive"), "images": "volumes", "key": {"env": "AUDIT_KEY"}}


def _build(section: dict[str, Any], **changes: Any) -> BuiltCatalogue:
    return build_catalogue(
        configuration.Archive(**(section | changes)), shard_images=4, shard_bytes=1 << 20, progress=SilentProgress()
    )


def _blocks(section: dict[str, Any], built: BuiltCatalogue, folder: Path, **only: Any) -> list[Images]:
    run = Objects(str(folder / "run"))
    write_table(run, "catalogue.parquet", built.table, group_rows=shard_images(built.table))
    archive = configuration.Archive(**section)
    reader = ShardReader(run, open_archive(archive), decode_options(archive))
    shards = archive_facts(built.table).shards
    return [Images.of(reader.read(shard, **only), ()) for shard in range(shards)]


def test_every_volume_is_decoded_and_everything_found_is_counted(section: dict[str, Any], tmp_path: Path) -> None:
    built = _build(section)
    assert readable_count(built.table) == VOLUMES
    reasons = dict(zip(built.rejected["id"].to_pylist(), built.rejected["reason"].to_pylist(), strict=True))
    assert sorted(reason.split(":")[0].split(";")[0] for reason in reasons.values()) == [
        "1 slice missing of 5",
        "a picture (PNG), which belongs to no volume",
        "a series of one slice, which is no volume",
    ]
    assert len(built.table) == VOLUMES + 3
    blocks = _blocks(section, built, tmp_path)
    rows = {row.id: row for row in catalogue_rows(built.table)}
    explained = [one for block in blocks for one in zip(block.ids, block.pixels, block.spacing, strict=True)]
    assert len(explained) == VOLUMES - 1
    for identifier, pixels, spacing in explained:
        row = rows[identifier]
        assert pixels.shape == (row.depth, row.height, row.width, 1)
        if not row.private_location.startswith("train/Mass/p2"):
            np.testing.assert_allclose(pixels, SHOWN, atol=1e-6)
        assert spacing == row.spacing == SPACING
    assert [reason for block in blocks for reason in block.rejected.values()] == [
        "the voxel data ends early: 591 of 592 bytes are there"
    ]


def test_one_volume_of_a_shard_can_be_read_alone(section: dict[str, Any], tmp_path: Path) -> None:
    built = _build(section)
    wanted = next(row for row in catalogue_rows(built.table) if row.private_location.startswith("z.zip"))
    blocks = _blocks(section, built, tmp_path, only=[wanted.id])
    assert [identifier for block in blocks for identifier in block.ids] == [wanted.id]
    assert [block.rejected for block in blocks] == [{}] * len(blocks)


def test_a_slice_that_is_gone_costs_its_volume(section: dict[str, Any], tmp_path: Path) -> None:
    built = _build(section)
    (tmp_path / "archive" / "train/Mass/p1/2.dcm").unlink()
    blocks = _blocks(section, built, tmp_path)
    reasons = [reason for block in blocks for reason in block.rejected.values()]
    assert "one of its 5 files cannot be read: there is no such file or folder (any more)" in reasons
    assert sum(len(block.ids) for block in blocks) == VOLUMES - 2


def test_missing_slices_are_interpolated_where_that_is_chosen(section: dict[str, Any], tmp_path: Path) -> None:
    section |= {"uneven": "resample", "include": ["gap"]}
    (block,) = _blocks(section, _build(section), tmp_path)
    np.testing.assert_allclose(block.pixels[0], SHOWN, atol=1e-6)


def test_labels_name_files_or_the_folders_of_series(section: dict[str, Any], tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label,set\ntrain/Mass/p1,Mass,test\np2,No Finding,train\none,Cyst,test\ngap,Mass,train\n")
    section["labels"] = {"file": str(labels), "split": "set"}
    found = {
        row.private_location: row.labels for row in catalogue_rows(_build(section).table) if row.labels is not None
    }
    assert found == {"train/Mass/p1/0.dcm": ("Mass",), "train/Mass/p2/0.dcm": (), "v/one.nii": ("Cyst",)}

    built = _build(section, split="test")
    assert [row.private_location for row in catalogue_rows(built.table)] == ["train/Mass/p1/0.dcm", "v/one.nii"]
    assert len(built.rejected) == 0
    assert _build(section, split="train").rejected.num_rows == 1
    with pytest.raises(ArchiveError, match="no file of the archive belongs to it"):
        _build(section, split="validation")

    rows = catalogue_rows(_build(section | {"labels": {"folders": True}}).table)
    assert {row.private_location: row.labels for row in rows}["train/Mass/p1/0.dcm"] == ("p1",)


def test_an_archive_of_frames_is_as_it_was(section: dict[str, Any]) -> None:
    built = _build(section, images="frames")
    rows = catalogue_rows(built.table)
    assert {(row.depth, row.private_slices) for row in rows} == {(1, None)}
    assert built.rejected["reason"].to_pylist() == ["a volume (NIfTI): set archive.images: volumes"] * 3
    assert len(rows) + 3 == built.files


@pytest.mark.parametrize(
    ("archive", "expected"),
    [
        ({"images": "volumes", "frames": "all"}, "images: volumes goes with neither boxes nor frames"),
        ({"images": "volumes", "boxes": {"file": "b.csv"}}, "images: volumes goes with neither boxes nor frames"),
        ({"images": "volumes", "range": [5, 5]}, "range: expected low < high, got 5 and 5"),
        ({"range": [-100, 100]}, "range and uneven are for images: volumes"),
        ({"uneven": "resample"}, "range and uneven are for images: volumes"),
        ({"images": "slices"}, "archive.images"),
        ({"images": "volumes", "caps": {"voxels": 0}}, "archive.caps.voxels"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(archive: dict[str, Any], expected: str) -> None:
    tree = {"run": "run", "archive": {"location": "x", **archive}, "model": {"source": "torchvision:resnet18"}}
    with pytest.raises(ConfigurationError, match=expected):
        check(tree)
