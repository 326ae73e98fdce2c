"""Boxes that somebody drew: read from a CSV file, placed on the images of a catalogue, or rejected with the reason."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from storage.catalogue import BOXES, labels_seen
from storage.labels import located, read_lines
from storage.records import Box

REJECTED_BOXES_SCHEMA = pa.schema(
    [("line", pa.int64()), ("id", pa.string()), ("label", pa.string()), ("reason", pa.string())]
)
"""``line`` of the box file; ``id`` of the image, null where it is not in the catalogue."""

# Rounding, and counting pixels from 1, put a side this far over the edge: such boxes are cut, others are refused.
_OVERHANG = 1.0


@dataclass(frozen=True, slots=True)
class BoxColumns:
    """Which columns of the box file mean what; the configuration's ``archive.boxes`` explains each."""

    image: str = "image"
    label: str = "label"
    sides: tuple[str, str, str, str] = ("x0", "y0", "x1", "y1")
    form: Literal["corners", "size"] = "corners"


@dataclass(frozen=True, slots=True)
class DrawnBox:
    """One line of a box file. box: what was drawn, None: its cells are empty, or a text that says what is wrong."""

    line: int
    image: str | None = field(repr=False)
    label: str | None
    box: Box | str | None


@dataclass(frozen=True, slots=True)
class _Image:
    """What boxes lie on: a first frame of the catalogue. row -1: it cannot be read."""

    row: int
    id: str
    height: int
    width: int


def read_boxes(payload: bytes, columns: BoxColumns) -> list[DrawnBox]:
    """The lines of a box file, in their order; a faulty one says so.

    Raises ConfigurationError for what is no CSV file or lacks a column.
    """
    return [
        DrawnBox(line, None, None, "fewer cells than columns")
        if row is None
        else DrawnBox(line, row[columns.image], row[columns.label], _box(row, columns))
        for line, row in read_lines(payload, "archive.boxes.file", (columns.image, columns.label, *columns.sides))
    ]


def place_boxes(
    catalogue: pa.Table, drawn: Sequence[DrawnBox], locations: Collection[str], classes: Collection[str] | None
) -> tuple[pa.Table, pa.Table]:
    """The catalogue with the boxes of each first frame, and what was rejected, by REJECTED_BOXES_SCHEMA.

    Lines without a box say that somebody looked: their image has (), not None. ``locations`` are all files of the
    archive: what is drawn on one that the catalogue leaves out, as those of another split, is left out like it.
    ``classes``: labels that boxes may have; None: those that images have.
    """
    classes = labels_seen(catalogue) if classes is None else classes
    files = located({item.image for item in drawn if item.image is not None}, locations)
    firsts, catalogued = _first_frames(catalogue, set(files.values()))
    placed: dict[int, list[Box]] = {}
    rejected: list[tuple[int, str | None, str | None, str]] = []
    for item in drawn:
        location = files.get(item.image or "")
        if location is not None and location not in catalogued:
            continue
        image = firsts.get(location or "")
        if item.box is None:
            if image is not None:
                placed.setdefault(image.row, [])
            continue
        found = _fitted(item.box, location, image, classes)
        if isinstance(found, str):
            rejected.append((item.line, image.id if image else None, item.label, found))
        elif image is not None:
            placed.setdefault(image.row, []).append(found)
    return _with_boxes(catalogue, placed), pa.Table.from_pylist(
        [dict(zip(REJECTED_BOXES_SCHEMA.names, values, strict=True)) for values in rejected], REJECTED_BOXES_SCHEMA
    )


def rejected_in_words(rejected: pa.Table) -> str | None:
    """How many boxes were rejected and why, in one sentence; None: not one."""
    if not len(rejected):
        return None
    kinds = Counter(reason.partition(":")[0] for reason in rejected["reason"].to_pylist())
    return f"{len(rejected)} box(es) are rejected (" + "; ".join(f"{n} {kind}" for kind, n in kinds.most_common()) + ")"


def _box(row: Mapping[str, str], columns: BoxColumns) -> Box | str | None:
    cells = [row[side] for side in columns.sides]
    if not any(cells):
        return None
    try:
        x0, y0, c, d = (float(cell) for cell in cells)
    except ValueError:
        return "not four numbers"
    x1, y1 = (x0 + c, y0 + d) if columns.form == "size" else (c, d)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return "not finite"
    if x1 <= x0 or y1 <= y0:
        return "empty or reversed"
    return Box(row[columns.label], x0, y0, x1, y1)


def _first_frames(catalogue: pa.Table, locations: Collection[str]) -> tuple[dict[str, _Image], set[str]]:
    """Of these files, the first frames, and which files are in the catalogue with any frame."""
    wanted = catalogue.select(["private_location", "row", "id", "frame", "height", "width"]).filter(
        pc.is_in(catalogue["private_location"], pa.array(sorted(locations), pa.string()))
    )
    rows = list(zip(*(column.to_pylist() for column in wanted.columns), strict=True))
    firsts = {
        location: _Image(row, identifier, height or 0, width or 0)
        for location, row, identifier, frame, height, width in rows
        if not frame  # null of what cannot be read
    }
    return firsts, {location for location, *_ in rows}


def _fitted(box: Box | str, location: str | None, image: _Image | None, classes: Collection[str]) -> Box | str:
    """The box as far as it lies in its image, or why it is rejected."""
    if isinstance(box, str):
        return box
    if location is None:
        return "of an image that is not in the archive, or of a name that several have"
    if image is None:
        return "of a frame that is not audited: boxes belong to the first, see archive.frames"
    if image.row < 0:
        return "of an image that cannot be read"
    if box.label not in classes:
        return "of a label that is no class of the model"
    inside = Box(
        box.label,
        max(box.x0, 0.0),
        max(box.y0, 0.0),
        min(box.x1, float(image.width)),
        min(box.y1, float(image.height)),
    )
    over = max(-box.x0, -box.y0, box.x1 - image.width, box.y1 - image.height)
    if over > _OVERHANG or inside.x1 <= inside.x0 or inside.y1 <= inside.y0:
        return (
            f"outside the image: it is {image.width} wide and {image.height} high, the box goes from "
            f"({box.x0:g}, {box.y0:g}) to ({box.x1:g}, {box.y1:g}); are the boxes in pixels of another size?"
        )
    return inside


def _with_boxes(catalogue: pa.Table, placed: Mapping[int, Sequence[Box]]) -> pa.Table:
    names = ("label", "x0", "y0", "x1", "y1")
    values = [
        None if found is None else [{name: getattr(box, name) for name in names} for box in found]
        for found in map(placed.get, range(len(catalogue)))
    ]
    return catalogue.set_column(catalogue.schema.get_field_index("boxes"), "boxes", pa.array(values, BOXES))
