"""What a shard's work leaves, on its way from the actor to the run: a row of bytes, then files, then a manifest.

Commits run in Ray's CPU tasks, which start fast because nothing here needs torch.
"""

import io
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from storage.arrays import write_features, write_maps, write_pixels
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.records import Note, Rejection
from storage.tables import to_bytes
from workflows.cases import DETECTORS, TABLES, cases_table, concepts_table, images_table

_RESULT = pa.schema(
    [
        ("shard", pa.int32()),
        ("images", pa.int64()),
        ("output", pa.large_binary()),
        ("rejected", pa.string()),  # JSON: [id, stage, reason]
        ("notes", pa.string()),  # JSON: [text, number]
        ("error", pa.string()),  # a fault of ours or of the model, not of an image: ends the run
    ]
)


def shard_result(
    shard: int, images: int, output: bytes, rejected: list[Rejection], notes: tuple[Note, ...]
) -> pa.Table:
    faults = [[item.id, item.stage, item.reason] for item in rejected]
    row = {
        "shard": shard,
        "images": images,
        "output": output,
        "rejected": json.dumps(faults),
        "notes": json.dumps([[note.text, note.number] for note in notes]),
        "error": None,
    }
    return pa.Table.from_pylist([row], schema=_RESULT)


def guarded(work: Callable[[pa.Table], pa.Table], block: pa.Table) -> pa.Table:
    """Carry a fault to the driver as a row: one that is raised counts as a shard lost with its worker.

    Only work that has seen neither file names nor headers runs inside, so the fault's text holds none.
    """
    try:
        return work(block)
    except RayError:  # what was lost with a machine, such as a stage's settings: the shard is begun anew
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        row = {"shard": block["shard"][0].as_py(), "images": 0, "error": text}
        return pa.Table.from_pylist([row], schema=_RESULT)


def packed(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Arrays by name as one npz: they cross from process to process without pickle."""
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]  # numpy's stub takes any keyword for allow_pickle
    return sink.getvalue()


def unpacked(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def commit_shard(commit: Callable[[pa.Table], pa.Table], block: pa.Table) -> pa.Table:
    return commit(block)


commit_task = ray.remote(max_retries=0)(commit_shard)


@dataclass(frozen=True, slots=True)
class ProfileCommit:
    """Writes one shard's partial, then its manifest."""

    run: Objects

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._commit, block)

    def _commit(self, block: pa.Table) -> pa.Table:
        row = block.to_pylist()[0]
        if row["error"] is None:
            Ledger(self.run, "profile").commit(manifest_of("profile", row), {"npz": row["output"]})
        return block.drop_columns(["output"])


@dataclass(frozen=True, slots=True)
class MapsCommit:
    """Writes one shard's region of every map, its part of the cases, then its manifest."""

    run: Objects
    shard_images: int
    images: int  # rows of maps.zarr
    class_names: tuple[str, ...]
    task: str

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._commit, block)

    def _commit(self, block: pa.Table) -> pa.Table:
        row = block.to_pylist()[0]
        if row["error"] is not None:
            return block.drop_columns(["output"])
        arrays = unpacked(row["output"])
        start = row["shard"] * self.shard_images
        length = min(self.shard_images, self.images - start)
        position = arrays["rows"] - start
        maps = {
            name.removeprefix("maps/"): placed_rows(values, position, length, np.nan)
            for name, values in arrays.items()
            if name.startswith("maps/")
        }
        if row["images"]:  # a shard without an explained image stays unwritten, which reads as no map
            write_maps(self.run, start, maps, placed_rows(arrays["classes"], position, length, -1))
        tables = [cases_table(arrays, self.class_names, self.task), images_table(arrays)]
        outputs = {}
        if "detectors" in arrays:
            tables.append(concepts_table(arrays))
            outputs[DETECTORS] = arrays["detectors"].tobytes()
        outputs |= {name: to_bytes(table) for name, table in zip(TABLES, tables, strict=False)}
        Ledger(self.run, "maps").commit(manifest_of("maps", row), outputs)
        return block.drop_columns(["output"])


@dataclass(frozen=True, slots=True)
class FeatureCommit:
    """Writes one shard's activations, its logits and labels, then its manifest."""

    run: Objects
    shard_images: int
    images: int  # rows of features.zarr

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._commit, block)

    def _commit(self, block: pa.Table) -> pa.Table:
        row = block.to_pylist()[0]
        if row["error"] is None:
            arrays = unpacked(row["output"])
            activation = arrays.pop("activation", None)
            if activation is not None and len(activation):
                start = row["shard"] * self.shard_images
                length = min(self.shard_images, self.images - start)
                write_features(self.run, start, placed_rows(activation, arrays["rows"] - start, length, np.nan))
            Ledger(self.run, "features").commit(manifest_of("features", row), {"npz": packed(arrays)})
        return block.drop_columns(["output"])


@dataclass(frozen=True, slots=True)
class PixelCommit:
    """Writes one shard's pictures, then its manifest."""

    run: Objects
    shard_images: int
    images: int  # rows of pixels.zarr

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._commit, block)

    def _commit(self, block: pa.Table) -> pa.Table:
        row = block.to_pylist()[0]
        if row["error"] is None:
            if row["images"]:
                arrays = unpacked(row["output"])
                rows, pixels = arrays["rows"], arrays["pixels"]
                start = row["shard"] * self.shard_images
                length = min(self.shard_images, self.images - start)
                write_pixels(self.run, start, placed_rows(pixels, rows - start, length, 0))
            Ledger(self.run, "pixels").commit(manifest_of("pixels", row))
        return block.drop_columns(["output"])


def placed_rows(
    values: np.ndarray[Any, Any], position: np.ndarray[Any, Any], length: int, fill: float
) -> np.ndarray[Any, Any]:
    """Spread the explained images over their shard's rows; rejected rows hold the fill value."""
    whole = np.full((length, *values.shape[1:]), fill, values.dtype)
    whole[position] = values
    return whole


def manifest_of(stage: str, row: Mapping[str, Any]) -> Manifest:
    rejected = tuple(Rejection(*item) for item in json.loads(row["rejected"]))
    notes = tuple(Note(*item) for item in json.loads(row["notes"]))
    return Manifest(stage, row["shard"], row["images"], rejected, notes=notes)
