"""A shard on its way through a pass: catalogue rows in, decoded pixels beside their positions out.

Runs in Ray's CPU tasks, which start fast because nothing here needs torch. One block is one shard, from here to the
commit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.archive import Archive
from storage.decode import DecodeOptions, decode_frames
from storage.errors import ImageError
from storage.objects import Objects
from storage.tables import read_group

_Pixels = np.ndarray[Any, Any] | str  # an image, or the reason why there is none
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
        rows = shard_rows(self.run, shard)
        if only is not None:
            skip = {row["id"] for row in rows} - set(only)
        skip = set(skip)
        wanted = sorted({row["private_location"] for row in rows if row["id"] not in skip})
        frames: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            frames.setdefault(row["private_location"], []).append(row)
        decoded: dict[str, _Pixels] = dict.fromkeys(skip, "")
        for location, payload in self.archive.read(wanted):
            unseen = [row for row in frames[location] if row["id"] not in decoded]
            decoded |= dict(zip([row["id"] for row in unseen], self._decode(payload, unseen), strict=True))
        return _block(shard, rows, decoded)

    def _decode(self, payload: bytes | ImageError, rows: Sequence[dict[str, Any]]) -> list[_Pixels]:
        """The frames of one file: its header is read once for all of them."""
        if isinstance(payload, ImageError):
            return [str(payload)] * len(rows)
        frames = tuple(row["frame"] for row in rows)
        try:
            found = list(decode_frames(payload, format=rows[0]["format"], frames=frames, options=self.options))
        except MemoryError:
            raise
        except Exception as error:  # a decoder's own fault; its text may quote the header, so only its class is kept
            return [f"decoding failed unexpectedly ({type(error).__name__})"] * len(rows)
        return [str(image) if isinstance(image, ImageError) else image for image in found]


def shard_rows(run: Objects, shard: int) -> list[dict[str, Any]]:
    """The catalogue's rows of a shard: its row group, less the unreadable items that follow the last shard."""
    rows = read_group(run, "catalogue.parquet", shard, _COLUMNS).to_pylist()
    return [row for row in rows if row["row"] >= 0]


def _block(shard: int, rows: list[dict[str, Any]], decoded: dict[str, _Pixels]) -> pa.Table:
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
