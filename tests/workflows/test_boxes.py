"""Boxes travel from the catalogue to the images of a pass, and are counted for what needs them."""

from pathlib import Path

import pyarrow as pa
import pytest

from storage.archive import Archive, ArchiveFile
from storage.boxes import BoxColumns, place_boxes, read_boxes
from storage.catalogue import assemble, catalogue_files
from storage.decode import DecodeOptions
from storage.identity import Identity
from storage.objects import Objects
from storage.records import Box
from storage.tables import read_table, write_table
from tests.storage.sample_files import dicom, raster
from workflows.images import Images
from workflows.shards import ShardReader
from workflows.survey import FACTS_COLUMNS, archive_facts

CLASSES = ("Mass", "Nodule")
FILES = {"a.dcm": dicom(frames=2), "b.png": raster("PNG"), "c.png": raster("PNG"), "d.png": raster("PNG")}
LINES = b"image,label,x0,y0,x1,y1\na,Mass,0,0,2,2\nc,Mass,1,1,2,2\nc,Nodule,0,0,3,3\nd,,,,,\n"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    (tmp_path / "archive").mkdir()
    for name, payload in FILES.items():
        (tmp_path / "archive" / name).write_bytes(payload)
    return Archive.open(str(tmp_path / "archive"))


def _catalogue(archive: Archive, lines: bytes) -> pa.Table:
    files = [found for found in archive.files() if isinstance(found, ArchiveFile)]
    rows, rejections = catalogue_files(archive, files, identity=Identity(b"k" * 32), frames="all")
    table = assemble(rows, rejections, shard_images=3, shard_bytes=1 << 20)
    return place_boxes(table, read_boxes(lines, BoxColumns()), FILES, CLASSES)[0]


def _images(archive: Archive, table: pa.Table, folder: Path) -> list[Images]:
    run = Objects(str(folder / "run"))
    write_table(run, "catalogue.parquet", table, group_rows=3)
    return [Images.of(ShardReader(run, archive, DecodeOptions()).read(shard), CLASSES) for shard in (0, 1)]


def test_boxes_come_with_the_pixels_of_the_first_frame_alone(archive: Archive, tmp_path: Path) -> None:
    first, second = _images(archive, _catalogue(archive, LINES), tmp_path)
    assert first.truth.boxes == [(Box("Mass", 0, 0, 2, 2),), None, None]  # both frames of a, and b
    assert second.truth.boxes == [(Box("Mass", 1, 1, 2, 2), Box("Nodule", 0, 0, 3, 3)), ()]


def test_boxes_stay_with_their_images_where_another_cannot_be_decoded(archive: Archive, tmp_path: Path) -> None:
    table = _catalogue(archive, LINES)
    (tmp_path / "archive" / "c.png").write_bytes(b"")
    first, second = _images(archive, table, tmp_path)
    assert first.truth.boxes == [(Box("Mass", 0, 0, 2, 2),), None, None]
    assert (len(second.ids), second.truth.boxes) == (1, [()])


def test_a_shard_without_boxes_says_so(archive: Archive, tmp_path: Path) -> None:
    first, second = _images(archive, _catalogue(archive, LINES.splitlines()[0]), tmp_path)
    assert (first.truth.boxes, second.truth.boxes) == (None, None)


def test_the_facts_count_images_with_boxes_and_boxes_of_a_label(archive: Archive, tmp_path: Path) -> None:
    run = Objects(str(tmp_path / "run"))
    write_table(run, "catalogue.parquet", _catalogue(archive, LINES))
    facts = archive_facts(read_table(run, "catalogue.parquet", FACTS_COLUMNS))
    assert (facts.boxed, dict(facts.boxed_labels)) == (2, {"Mass": 2, "Nodule": 1})
    facts = archive_facts(_catalogue(archive, LINES.splitlines()[0]))
    assert (facts.boxed, dict(facts.boxed_labels)) == (0, {})
