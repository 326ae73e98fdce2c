"""A shard on its way through a pass: catalogue rows in, decoded pixels beside their positions out.

Runs in Ray's CPU tasks, which start fast because nothing here needs torch. One block is one shard, from here to the
commit.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from storage.archive import Archive
from storage.catalogue import BOXES
from storage.decode import DecodeOptions, decode_frames, decode_volume
from storage.errors import ImageError
from storage.objects import Objects
from storage.tables import read_group

_COLUMNS = ["row", "id", "format", "frame", "depth", "spacing", "labels", "boxes", "private_location", "private_slices"]
_BLOCK = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("boxes", BOXES),
        ("pixels", pa.large_binary()),  # null: see reason
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("spacing", pa.list_(pa.float32())),  # mm along the shape's spatial axes; null: not known
        ("reason", pa.string()),  # why there are no pixels; "" for an image rejected earlier
    ]
)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image [h,w] or [h,w,3], or a volume [d,h,w,1]. spacing: mm along its spatial axes."""

    pixels: np.ndarray[Any, Any]
    spacing: Sequence[float] | None


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
        unseen = [row for row in rows if row["id"] not in skip]
        images, volumes = [row for row in unseen if row["depth"] == 1], [row for row in unseen if row["depth"] > 1]
        decoded: dict[str, _Decoded | str] = dict.fromkeys(skip, "")
        return _block(shard, rows, decoded | self._images(images) | self._volumes(volumes))

    def _images(self, rows: Sequence[dict[str, Any]]) -> dict[str, _Decoded | str]:
        frames: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            frames.setdefault(row["private_location"], []).append(row)
        decoded: dict[str, _Decoded | str] = {}
        for location, payload in self.archive.read(sorted(frames)):
            decoded |= {row["id"]: found for row, found in self._frames(payload, frames[location])}
        return decoded

    def _frames(
        self, payload: bytes | ImageError, rows: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], _Decoded | str]]:
        """The frames of one file: its header is read once for all of them."""
        if isinstance(payload, ImageError):
            yield from ((row, str(payload)) for row in rows)
            return
        frames = tuple(row["frame"] for row in rows)
        try:
            found = list(decode_frames(payload, format=rows[0]["format"], frames=frames, options=self.options))
        except MemoryError:
            raise
        except Exception as error:  # a decoder's own fault; its text may quote the header, so only its class is kept
            yield from ((row, _unexpected(error)) for row in rows)
            return
        for row, image in zip(rows, found, strict=True):
            yield row, str(image) if isinstance(image, ImageError) else _Decoded(image, row["spacing"])

    def _volumes(self, rows: Sequence[dict[str, Any]]) -> dict[str, _Decoded | str]:
        """Each decoded as soon as its last file is read. In a container that mixes its series all of them wait."""
        owners = {location: row for row in rows for location in _files(row)}
        waiting: dict[str, list[bytes | ImageError]] = {}
        decoded: dict[str, _Decoded | str] = {}
        for location, payload in self.archive.read(owners):
            row = owners[location]
            files = waiting.setdefault(row["id"], [])
            files.append(payload)
            if len(files) == len(_files(row)):
                decoded[row["id"]] = self._volume(waiting.pop(row["id"]), row)
        return decoded

    def _volume(self, files: Sequence[bytes | ImageError], row: dict[str, Any]) -> _Decoded | str:
        fault = next((payload for payload in files if isinstance(payload, ImageError)), None)
        if fault is not None:
            return f"one of its {len(files)} files cannot be read: {fault}" if len(files) > 1 else str(fault)
        whole = [payload for payload in files if isinstance(payload, bytes)]
        try:
            volume = decode_volume(whole, format=row["format"], options=self.options)
        except MemoryError:
            raise
        except ImageError as error:
            return str(error)
        except Exception as error:  # as above
            return _unexpected(error)
        return _Decoded(volume.pixels, volume.spacing)


def read_shard(reader: ShardReader, shard: int, skip: Sequence[str]) -> pa.Table:
    return reader.read(shard, skip=skip)


read_task = ray.remote(max_retries=0)(read_shard)


def _files(row: dict[str, Any]) -> list[str]:
    files: list[str] = row["private_slices"] or [row["private_location"]]
    return files


def _unexpected(error: Exception) -> str:
    return f"decoding failed unexpectedly ({type(error).__name__})"


def shard_rows(run: Objects, shard: int) -> list[dict[str, Any]]:
    """The catalogue's rows of a shard: its row group, less the unreadable items that follow the last shard."""
    rows = read_group(run, "catalogue.parquet", shard, _COLUMNS).to_pylist()
    return [row for row in rows if row["row"] >= 0]


def _block(shard: int, rows: list[dict[str, Any]], decoded: Mapping[str, _Decoded | str]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _BLOCK.names}
    for row in rows:
        result = decoded.get(row["id"], "the file is no longer in the archive")
        found = None if isinstance(result, str) else result
        columns["shard"].append(shard)
        columns["row"].append(row["row"])
        columns["id"].append(row["id"])
        columns["labels"].append(row["labels"])
        columns["boxes"].append(row["boxes"])
        columns["pixels"].append(None if found is None else np.ascontiguousarray(found.pixels).data.cast("B"))
        columns["shape"].append(None if found is None else found.pixels.shape)
        columns["dtype"].append(None if found is None else found.pixels.dtype.str)
        columns["spacing"].append(None if found is None else found.spacing)
        columns["reason"].append(result if found is None else None)
    return pa.table(columns, schema=_BLOCK)
