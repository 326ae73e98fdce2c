"""The catalogue: one row an image or volume, in an order that is the same on every machine, cut into shards."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.archive import Archive, ArchiveFile, Stream
from storage.dicom_summary import IMAGE_ELEMENTS, Elements
from storage.errors import ImageError
from storage.headers import Header, read_header
from storage.identity import Identity
from storage.labels import Label
from storage.listing import ArchiveCaps
from storage.nifti import refuse_bomb
from storage.quiet import quiet
from storage.records import Box, CatalogueRow, Rejection

BOXES = pa.list_(pa.struct([("label", pa.string()), *((side, pa.float64()) for side in ("x0", "y0", "x1", "y1"))]))
_FIELDS = [
    ("id", pa.string()),
    ("patient", pa.string()),
    ("format", pa.string()),
    ("modality", pa.string()),
    ("frame", pa.int32()),
    ("frames", pa.int32()),
    ("depth", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("channels", pa.int32()),
    ("bits", pa.int32()),
    ("spacing", pa.list_(pa.float64())),
    ("burned_in", pa.bool_()),
    ("labels", pa.list_(pa.string())),
    ("boxes", BOXES),
    ("split", pa.string()),
    ("private_location", pa.string()),
    ("private_bytes", pa.int64()),
    ("private_slices", pa.list_(pa.string())),
]
_PLAIN_SCHEMA = pa.schema(_FIELDS)
CATALOGUE_SCHEMA = pa.schema([("row", pa.int64()), ("shard", pa.int32()), *_FIELDS])
"""``row`` and ``shard`` are -1 for what could not be read; metadata ``shard_images`` is the length of a shard."""
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("stage", pa.string()), ("reason", pa.string())])
SHARD_IMAGES = b"shard_images"

Frames = Literal["all", "middle"] | int
Located = tuple[Rejection, str]
_UNLABELLED = Label()


def catalogue_files(
    archive: Archive,
    files: Sequence[ArchiveFile],
    *,
    identity: Identity,
    frames: Frames = "middle",
    labels: Mapping[str, Label] | None = None,
    caps: ArchiveCaps | None = None,
) -> tuple[list[CatalogueRow], list[Located]]:
    """The rows of these files, and what was rejected of them with its location. Reads headers only.

    ``labels`` are looked up by location; ``frames`` takes all, the middle one, or every n-th.
    """
    caps = caps or archive.caps
    sizes = {file.location: file.bytes for file in files}
    rows: list[CatalogueRow] = []
    rejections: list[Located] = []
    with quiet("pydicom"):
        for location, stream in archive.streams(sizes):
            try:
                header = header_of(stream, sizes[location], caps)
                if header.depth > 1:
                    raise ImageError("a volume (NIfTI): set archive.images: volumes")
            except ImageError as error:
                rejections.append(reject(identity, location, str(error)))
                continue
            first = row_of(header, location, sizes[location], identity, (labels or {}).get(location, _UNLABELLED))
            for frame in chosen_frames(header.frames, frames):
                rows.append(first if frame == 0 else _at_frame(first, frame, identity))
    return rows, rejections


def reject(identity: Identity, location: str, reason: str) -> Located:
    """The rejection of a whole file at this stage."""
    return Rejection(identity.image(location), "catalogue", reason), location


def chosen_frames(count: int, frames: Frames) -> Sequence[int]:
    """0-based frames of a file of ``count``: ``all``, ``middle``, or an int n for every n-th from the first."""
    if frames == "middle":
        return (count // 2,)
    return range(0, count, 1 if frames == "all" else int(frames))


def header_of(stream: Stream | ImageError, size: int, caps: ArchiveCaps, elements: Elements = IMAGE_ELEMENTS) -> Header:
    """The header of a file of ``size`` bytes. Raises ImageError."""
    if isinstance(stream, ImageError):
        raise stream
    if size > caps.file_bytes:
        raise ImageError(
            f"the file has {size} bytes, more than the {caps.file_bytes} allowed (archive.caps.file_bytes)"
        )
    header = read_header(stream, caps, elements)
    refuse_bomb(header.unpacked, size, file_bytes=caps.file_bytes, ratio=caps.ratio)
    return header


def row_of(header: Header, location: str, size: int, identity: Identity, label: Label) -> CatalogueRow:
    """The row of a file: of its first frame."""
    patient = label.patient or header.patient
    return CatalogueRow(
        id=identity.image(location),
        patient=identity.patient(patient) if patient else None,
        format=header.format,
        modality=header.modality,
        frame=0,
        frames=header.frames,
        depth=header.depth,
        height=header.height,
        width=header.width,
        channels=header.channels,
        bits=header.bits,
        spacing=header.spacing,
        burned_in=header.burned_in,
        labels=label.labels,
        boxes=None,
        split=label.split,
        private_location=location,
        private_bytes=size,
        private_slices=None,
    )


def _at_frame(row: CatalogueRow, frame: int, identity: Identity) -> CatalogueRow:
    return dataclasses.replace(row, frame=frame, id=identity.image(row.private_location, frame))


def rows_to_table(rows: Sequence[CatalogueRow]) -> pa.Table:
    """Rows as a table without row numbers: what workers hand back."""
    columns = {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _FIELDS if name != "boxes"}
    columns["boxes"] = pa.array(
        [None if row.boxes is None else [dataclasses.asdict(box) for box in row.boxes] for row in rows],
        BOXES,
    )
    return pa.table(columns, _PLAIN_SCHEMA)


def assemble(
    rows: Sequence[CatalogueRow], rejections: Sequence[Located], *, shard_images: int, shard_bytes: int
) -> pa.Table:
    """The whole catalogue from unordered rows; see :func:`arrange`."""
    return arrange(rows_to_table(rows), rejections, shard_images=shard_images, shard_bytes=shard_bytes)


def arrange(readable: pa.Table, rejections: Sequence[Located], *, shard_images: int, shard_bytes: int) -> pa.Table:
    """Sort by (location, frame), number the rows and cut them into shards of one length; unreadable items follow.

    The length is the largest of ``shard_images``, half of it, a quarter, ... at which no shard decodes to more than
    ``shard_bytes`` (float32), and at least 1.
    """
    readable = readable.sort_by([("private_location", "ascending"), ("frame", "ascending")])
    length = shard_length(decoded_bytes(readable), shard_images=shard_images, shard_bytes=shard_bytes)
    numbers = np.arange(readable.num_rows, dtype=np.int64)
    numbered = pa.table(
        [pa.array(numbers), pa.array((numbers // length).astype(np.int32)), *readable.columns], CATALOGUE_SCHEMA
    )
    ordered = sorted(rejections, key=lambda item: item[1])
    unreadable = pa.Table.from_pylist(
        [{"row": -1, "shard": -1, "id": item.id, "private_location": location} for item, location in ordered],
        CATALOGUE_SCHEMA,
    )
    whole = pa.concat_tables([numbered, unreadable]).combine_chunks()
    return whole.replace_schema_metadata({SHARD_IMAGES: str(length).encode()})


def rejected_table(rejections: Iterable[Rejection]) -> pa.Table:
    """Rejections as a table with columns id, stage, reason."""
    return pa.Table.from_pylist([dataclasses.asdict(rejection) for rejection in rejections], REJECTED_SCHEMA)


def shard_length(decoded_bytes: np.ndarray[Any, np.dtype[np.int64]], *, shard_images: int, shard_bytes: int) -> int:
    """How many images a shard has, from the decoded size of each image in catalogue order."""
    length = shard_images
    while length > 1:
        if (
            decoded_bytes.size == 0
            or int(np.add.reduceat(decoded_bytes, np.arange(0, decoded_bytes.size, length)).max()) <= shard_bytes
        ):
            return length
        length //= 2
    return 1


def decoded_bytes(readable: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Of each row, as float32."""
    sides = [np.asarray(readable[name].to_numpy(), dtype=np.int64) for name in ("depth", "height", "width", "channels")]
    return sides[0] * sides[1] * sides[2] * sides[3] * np.dtype(np.float32).itemsize


def shard_images(table: pa.Table) -> int:
    """Images a shard of this catalogue has (the last one may have fewer)."""
    return int((table.schema.metadata or {})[SHARD_IMAGES])


def readable_count(table: pa.Table) -> int:
    """Rows that have an image: they come first."""
    return int(pc.sum(pc.greater_equal(table["row"], 0)).as_py() or 0)


def labels_seen(table: pa.Table) -> list[str]:
    """Every label that an image of the catalogue has, sorted."""
    return sorted(pc.unique(pc.list_flatten(table["labels"])).to_pylist())


def ids_digest(table: pa.Table) -> str:
    """SHA-256 over the ids of a catalogue in their order."""
    hashed = hashlib.sha256()
    for batch in table.select(["id"]).to_batches(max_chunksize=1 << 16):
        hashed.update("".join(f"{identifier}\n" for identifier in batch["id"].to_pylist()).encode())
    return hashed.hexdigest()


def catalogue_rows(table: pa.Table, start: int = 0, stop: int | None = None) -> list[CatalogueRow]:
    """Rows ``start`` to ``stop`` (half-open, readable ones only) as records."""
    stop = readable_count(table) if stop is None else min(stop, readable_count(table))
    wanted = table.slice(start, max(0, stop - start)).select([name for name, _ in _FIELDS])
    return [_record(values) for values in wanted.to_pylist()]


def _record(values: dict[str, Any]) -> CatalogueRow:
    boxes = values.pop("boxes")
    for name in ("labels", "spacing", "private_slices"):
        values[name] = None if values[name] is None else tuple(values[name])
    return CatalogueRow(
        boxes=None if boxes is None else tuple(Box(**box) for box in boxes),
        **values,
    )
