"""A shard on its way through a pass: catalogue rows in, decoded pixels beside their positions out.

Runs in Ray's CPU tasks. One block is one shard, from here to the commit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.archive import Archive
from storage.decode import DecodeOptions, decode_image
from storage.errors import ImageError
from storage.objects import Objects
from storage.tables import read_group
from tasks.profile import Truth

_COLUMNS = ["row", "id", "format", "frame", "labels", "private_location"]
_BLOCK = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("pixels", pa.large_binary()),  # null: see reason
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("reason", pa.string()),  # why there are no pixels; "" for an image rejected earlier
    ]
)


@dataclass(frozen=True, slots=True)
class ShardReader:
    """Reads and decodes shards of one run's catalogue."""

    run: Objects
    archive: Archive
    options: DecodeOptions

    def read(self, shard: int, *, skip: Collection[str] = (), only: Collection[str] | None = None) -> pa.Table:
        """All rows of a shard, in catalogue order; one image's fault is a reason in its row.

        `skip` names images that were rejected before, `only` the images wanted where these are few: the bytes of
        all others are not touched.
        """
        rows = read_group(self.run, "catalogue.parquet", shard, _COLUMNS).to_pylist()
        if only is not None:
            skip = {row["id"] for row in rows} - set(only)
        skip = set(skip)
        wanted = sorted({row["private_location"] for row in rows if row["id"] not in skip})
        frames: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            frames.setdefault(row["private_location"], []).append(row)
        decoded: dict[str, np.ndarray[Any, Any] | str] = {identifier: "" for identifier in skip}
        for location, payload in self.archive.read(wanted):
            for row in frames[location]:
                if row["id"] not in decoded:
                    decoded[row["id"]] = self._decode(payload, row)
        return _block(shard, rows, decoded)

    def _decode(self, payload: bytes | ImageError, row: dict[str, Any]) -> np.ndarray[Any, Any] | str:
        if isinstance(payload, ImageError):
            return str(payload)
        try:
            return decode_image(payload, format=row["format"], frame=row["frame"], options=self.options)
        except ImageError as error:
            return str(error)


def _block(shard: int, rows: list[dict[str, Any]], decoded: dict[str, np.ndarray[Any, Any] | str]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _BLOCK.names}
    for row in rows:
        result = decoded.get(row["id"], "the file is no longer in the archive")
        image = None if isinstance(result, str) else result
        columns["shard"].append(shard)
        columns["row"].append(row["row"])
        columns["id"].append(row["id"])
        columns["labels"].append(row["labels"])
        columns["pixels"].append(None if image is None else np.ascontiguousarray(image).data.cast("B"))
        columns["shape"].append(None if image is None else image.shape)
        columns["dtype"].append(None if image is None else image.dtype.str)
        columns["reason"].append(result if image is None else None)
    return pa.table(columns, schema=_BLOCK)


@dataclass(frozen=True, slots=True)
class Images:
    """The decodable images of a block. Arrays are read-only views into it; rejected: id and reason of the others."""

    shard: int
    rows: np.ndarray[Any, Any]  # int64 [N]
    ids: list[str]
    pixels: list[np.ndarray[Any, Any]]
    truth: Truth
    rejected: dict[str, str]

    @classmethod
    def of(cls, block: pa.Table, classes: Sequence[str]) -> "Images":
        shards = set(block["shard"].to_pylist())
        if len(shards) != 1:
            raise ValueError(f"a block holds one shard, got {sorted(shards)}")
        good = [index for index, ok in enumerate(block["pixels"].is_valid().to_pylist()) if ok]
        ids, reasons = block["id"].to_pylist(), block["reason"].to_pylist()
        labels = block["labels"].to_pylist()
        pixels = block["pixels"].combine_chunks()
        shapes, dtypes = block["shape"].to_pylist(), block["dtype"].to_pylist()
        return cls(
            shard=shards.pop(),
            rows=block["row"].to_numpy()[good],
            ids=[ids[index] for index in good],
            pixels=[np.frombuffer(pixels[index].as_buffer(), dtypes[index]).reshape(shapes[index]) for index in good],
            truth=truth_of([labels[index] for index in good], classes),
            rejected={ids[i]: reasons[i] for i in range(len(ids)) if reasons[i]},
        )


def truth_of(labels: Sequence[Sequence[str] | None], classes: Sequence[str]) -> Truth:
    """Labels by name as a table: an image is labelled when it has labels, and none of them is unknown to the model."""
    column = {name: index for index, name in enumerate(classes)}
    positive = np.zeros((len(labels), len(classes)), bool)
    labelled = np.zeros(len(labels), bool)
    for index, names in enumerate(labels):
        if names is not None and all(name in column for name in names):
            labelled[index] = True
            positive[index, [column[name] for name in names]] = True
    return Truth(labelled, positive)
