"""Each line of a box file ends on its image, or among the rejected boxes with the reason; none ends the run."""

from pathlib import Path

import pyarrow as pa
import pytest

from storage.archive import Archive, ArchiveFile
from storage.boxes import REJECTED_BOXES_SCHEMA, BoxColumns, place_boxes, read_boxes, rejected_in_words
from storage.catalogue import CATALOGUE_SCHEMA, assemble, catalogue_files, catalogue_rows, shard_images
from storage.errors import ConfigurationError
from storage.identity import Identity
from storage.records import Box
from tests.storage.sample_files import dicom, raster

IDENTITY = Identity(b"k" * 32)
CANARY = "MUSTERMANN"
CLASSES = ("Mass", "Nodule")
HEADER = "image,label,x0,y0,x1,y1\n"
WIDTH, HEIGHT = 20, 10
FILES = {
    "a.png": raster("PNG", width=WIDTH, height=HEIGHT),
    "b.png": raster("PNG", width=WIDTH, height=HEIGHT),
    "one/twin.png": raster("PNG"),
    "two/twin.png": raster("PNG"),
    "many.dcm": dicom(frames=3),
    "broken.png": b"",
}


@pytest.fixture
def catalogue(tmp_path: Path) -> pa.Table:
    for name, payload in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(payload)
    archive = Archive.open(str(tmp_path))
    files = [found for found in archive.files() if isinstance(found, ArchiveFile)]
    rows, rejections = catalogue_files(archive, files, identity=IDENTITY, frames="middle")
    return assemble(rows, rejections, shard_images=2, shard_bytes=1 << 20)


def _placed(catalogue: pa.Table, lines: str) -> tuple[pa.Table, pa.Table]:
    return place_boxes(catalogue, read_boxes((HEADER + lines).encode(), BoxColumns()), FILES, CLASSES)


def _boxes(catalogue: pa.Table) -> dict[str, tuple[Box, ...] | None]:
    return {row.private_location: row.boxes for row in catalogue_rows(catalogue)}


def test_boxes_by_corners_come_to_their_images_in_the_order_of_the_file(catalogue: pa.Table) -> None:
    placed, rejected = _placed(catalogue, "a,Nodule,0,0,1,1\nb.png,Mass,1,2,4,6\na.png,Mass,5,5,6.5,7\n")
    assert len(rejected) == 0
    assert _boxes(placed) == {
        "a.png": (Box("Nodule", 0, 0, 1, 1), Box("Mass", 5, 5, 6.5, 7)),
        "b.png": (Box("Mass", 1, 2, 4, 6),),
        "many.dcm": None,
        "one/twin.png": None,
        "two/twin.png": None,
    }


def test_boxes_by_size(catalogue: pa.Table) -> None:
    sized = b"Image Index,Finding Label,x,y,w,h\na,Mass,1,2,3,4\n"
    drawn = read_boxes(sized, BoxColumns("Image Index", "Finding Label", ("x", "y", "w", "h"), "size"))
    assert _boxes(place_boxes(catalogue, drawn, FILES, CLASSES)[0])["a.png"] == (Box("Mass", 1, 2, 4, 6),)


def test_nothing_else_of_the_catalogue_changes(catalogue: pa.Table) -> None:
    placed, _ = _placed(catalogue, "a,Mass,0,0,1,1\n")
    assert placed.schema.equals(CATALOGUE_SCHEMA)
    assert shard_images(placed) == shard_images(catalogue) == 2
    assert placed.drop_columns(["boxes"]).equals(catalogue.drop_columns(["boxes"]))


def test_empty_cells_say_that_somebody_looked_and_drew_nothing(catalogue: pa.Table) -> None:
    placed, rejected = _placed(catalogue, "a,,,,,\nb,Mass,1,1,2,2\nb,,,,,\ngone,,,,,\nbroken,,,,,\nmany,,,,,\n")
    found = _boxes(placed)
    assert (found["a.png"], found["b.png"], found["many.dcm"]) == ((), (Box("Mass", 1, 1, 2, 2),), None)
    assert len(rejected) == 0


@pytest.mark.parametrize(
    ("line", "known", "reason"),
    [
        ("a,Mass,4,2,1,6", True, "empty or reversed"),
        ("a,Mass,1,6,2,6", True, "empty or reversed"),
        ("a,Mass,1,2,nan,6", True, "not finite"),
        ("a,Mass,-inf,2,3,6", True, "not finite"),
        (f"a,Mass,1,2,{CANARY},6", True, "not four numbers"),
        ("a,Mass,1,,3,4", True, "not four numbers"),
        ("a,Mass,1,2", False, "fewer cells than columns"),
        (f"{CANARY},Mass,1,2,3,4", False, "of an image that is not in the archive, or of a name that several have"),
        ("twin.png,Mass,1,2,3,4", False, "of an image that is not in the archive, or of a name that several have"),
        ("many,Mass,1,2,3,4", False, "of a frame that is not audited: boxes belong to the first, see archive.frames"),
        ("broken.png,Mass,1,2,3,4", True, "of an image that cannot be read"),
        ("a,Oedema,1,2,3,4", True, "of a label that is no class of the model"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason_and_costs_no_other(
    catalogue: pa.Table, line: str, known: bool, reason: str
) -> None:
    placed, rejected = _placed(catalogue, f"{line}\nb,Mass,0,0,2,2\n")
    assert rejected.schema.equals(REJECTED_BOXES_SCHEMA)
    (row,) = rejected.to_pylist()
    assert (row["line"], row["reason"]) == (2, reason)
    cells = line.split(",")
    assert row["label"] == (cells[1] if len(cells) == 6 else None)
    name = {"a": "a.png"}.get(cells[0], cells[0])
    assert row["id"] == (IDENTITY.image(name) if known else None)
    assert _boxes(placed)["b.png"] == (Box("Mass", 0, 0, 2, 2),)
    assert _boxes(placed)["a.png"] is None
    assert CANARY not in str(row)


@pytest.mark.parametrize("sides", ["30,20,40,50", "0,0,21.5,5", "-1.5,0,5,5", "0,0,5,11.5", "20,0,20.5,5", "-1,2,0,3"])
def test_a_box_outside_its_image_names_both_sizes(catalogue: pa.Table, sides: str) -> None:
    placed, rejected = _placed(catalogue, f"a,Mass,{sides}\na,Mass,1,1,2,2\n")
    (reason,) = rejected["reason"].to_pylist()
    assert reason.startswith("outside the image: it is 20 wide and 10 high, the box goes from (")
    assert reason.endswith("are the boxes in pixels of another size?")
    x0, y0, x1, y1 = sides.split(",")
    assert f"({x0}, {y0}) to ({x1}, {y1})" in reason
    assert _boxes(placed)["a.png"] == (Box("Mass", 1, 1, 2, 2),)


def test_one_pixel_over_the_edge_is_cut(catalogue: pa.Table) -> None:
    placed, rejected = _placed(catalogue, "a,Mass,-1,-0.5,21,11\nb,Mass,19.5,9,20.5,10.5\n")
    assert len(rejected) == 0
    assert _boxes(placed)["a.png"] == (Box("Mass", 0, 0, WIDTH, HEIGHT),)
    assert _boxes(placed)["b.png"] == (Box("Mass", 19.5, 9, WIDTH, HEIGHT),)


def test_an_image_that_the_catalogue_leaves_out_takes_its_boxes_along(catalogue: pa.Table) -> None:
    other = read_boxes(f"{HEADER}train.png,Mass,1,2,3,4\ntrain.png,Mass,3,2,1,4\n".encode(), BoxColumns())
    placed, rejected = place_boxes(catalogue, other, [*FILES, "train.png"], CLASSES)
    assert len(rejected) == 0
    assert placed.equals(catalogue)


def test_what_is_rejected_is_told_by_kind() -> None:
    rows = ["empty or reversed", "outside the image: 1", "outside the image: 2"]
    table = pa.Table.from_pylist(
        [{"line": n, "reason": reason} for n, reason in enumerate(rows)], REJECTED_BOXES_SCHEMA
    )
    assert rejected_in_words(table) == "3 box(es) are rejected (2 outside the image; 1 empty or reversed)"
    assert rejected_in_words(REJECTED_BOXES_SCHEMA.empty_table()) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"image,label,x0,y0,x1\n", "archive.boxes.file: no column y1; the columns are image, label, x0, y0, x1"),
        (b"\xff\xfe", "archive.boxes.file: expected a CSV file in UTF-8"),
        (b"", "no column image, label, x0, y0, x1, y1; the columns are none"),
    ],
)
def test_a_file_that_is_no_box_file_is_refused(text: bytes, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        read_boxes(text, BoxColumns())
