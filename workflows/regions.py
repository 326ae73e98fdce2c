"""The atlas of an audit, and the saliency of its regions over the whole archive."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dask.array
import numpy as np
import pyarrow as pa
from ray.util.dask import ray_dask_get

from storage.arrays import open_maps
from storage.documents import read_document
from storage.errors import ConfigurationError, ImageError
from storage.nifti import read_label_volume
from storage.objects import Objects
from storage.tables import write_table
from tasks.atlas import Atlas, Regions
from workflows import configuration

_TABLE = "regions.parquet"
_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("class", pa.string()),
        ("region", pa.string()),
        ("mean", pa.float64()),  # over images, of the map's mean over the region
        ("std", pa.float64()),  # between images
        ("n", pa.int64()),
    ]
)
_ATLAS_BYTES = 1 << 30
_COLUMNS = ["label", "name"]


def read_atlas(asked: configuration.Atlas) -> Atlas:
    """The label volume and the names of its regions. Raises ConfigurationError where they do not make an atlas."""
    try:
        labels, spacing = read_label_volume(read_document(asked.file, "explain.atlas.file", limit=_ATLAS_BYTES))
    except ImageError as error:
        raise ConfigurationError(f"explain.atlas.file: {error}.") from error
    present = [int(label) for label in np.unique(labels) if label]
    if not present:
        raise ConfigurationError("explain.atlas.file: every voxel is 0; expected a region's number in some of them.")
    if asked.names is None:
        return Atlas(labels, {label: f"region {label}" for label in present}, spacing)
    names = _names(read_document(asked.names, "explain.atlas.names"))
    missing = [label for label in names if label not in present]
    if missing:
        raise ConfigurationError(
            f"explain.atlas.names: {len(missing)} of {len(names)} labels are in no voxel of the atlas, "
            f"{missing[0]} ({names[missing[0]]}) among them."
        )
    return Atlas(labels, names, spacing)


def _names(document: bytes) -> Mapping[int, str]:
    try:
        rows = list(csv.DictReader(io.StringIO(document.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError("explain.atlas.names: cannot be read as CSV in UTF-8.") from error
    if not rows or not set(_COLUMNS) <= rows[0].keys():
        raise ConfigurationError("explain.atlas.names: expected a CSV file with the columns label and name.")
    if not all(row["label"] and row["name"] for row in rows):
        raise ConfigurationError("explain.atlas.names: a row lacks its label or its name.")
    try:
        names = {int(row["label"]): row["name"] for row in rows}
    except ValueError as error:
        raise ConfigurationError("explain.atlas.names: a label is no whole number.") from error
    if len(set(names.values())) < len(rows) or 0 in names:
        raise ConfigurationError("explain.atlas.names: a label or a name is there twice, or label 0, the background.")
    return names


def write_regions(run: Objects, methods: Sequence[str], regions: Regions | None, class_names: Sequence[str]) -> None:
    """Write regions.parquet: the saliency of each region in the maps of each method and class.

    Without an atlas there is none.
    """
    if regions is None:
        run.delete(_TABLE)
        return
    rows = [row for method in methods for row in _rows(run, method, regions, class_names)]
    write_table(run, _TABLE, pa.Table.from_pylist(rows, schema=_SCHEMA))


def _rows(run: Objects, method: str, regions: Regions, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    sums, squares, counts = np.moveaxis(_moments(run, method, regions, len(class_names)), -1, 0)
    for index, name in enumerate(class_names):
        for place, region in enumerate(regions.names):
            n = int(counts[index, place])
            if n:
                mean = sums[index, place] / n
                variance = max(0.0, squares[index, place] / n - mean**2)
                yield {
                    "method": method,
                    "class": name,
                    "region": region,
                    "mean": float(mean),
                    "std": float(np.sqrt(variance)),
                    "n": n,
                }


def _moments(run: Objects, method: str, regions: Regions, classes: int) -> np.ndarray[Any, Any]:
    """[C,R,3] float64: sum, sum of squares and number of the maps' means over each region."""
    stored = open_maps(run, method)
    weights = regions.weights(stored.shape[2:])
    length = (stored.shards or stored.chunks)[0]  # one task a Zarr shard
    shards = -(-stored.shape[0] // length)
    chunks = ((1,) * shards, (classes,), (len(weights),), (3,))
    partial = dask.array.map_blocks(  # type: ignore[no-untyped-call]
        _shard_moments, run, method, weights, length, classes, chunks=chunks, dtype=np.float64, meta=np.zeros((0,) * 4)
    )
    return np.asarray(partial.sum(axis=0, split_every=8).compute(scheduler=ray_dask_get))


def _shard_moments(
    run: Objects, method: str, weights: np.ndarray[Any, Any], length: int, classes: int, block_info: Any = None
) -> np.ndarray[Any, Any]:
    start = block_info[None]["array-location"][0][0] * length
    maps = np.asarray(open_maps(run, method)[start : start + length], np.float32)
    category = np.asarray(open_maps(run, "classes")[start : start + length]).ravel()
    # One map at a time: its mean depends on nothing beside it, and no second copy of all maps is made.
    means = np.stack([weights @ cells for cells in maps.reshape(len(category), -1)]).astype(np.float64)
    known = (category >= 0) & np.isfinite(means).all(1)
    found = np.zeros((classes, len(weights), 3))
    for power in range(3):
        # Sum, sum of squares, number: the order of addition is that of the rows.
        values = np.ones_like(means) if power == 2 else means ** (power + 1)
        np.add.at(found[..., power], category[known], values[known])
    return found[None]
