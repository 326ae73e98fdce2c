"""The saliency of an atlas's regions over the whole archive."""

from collections.abc import Iterator, Sequence
from typing import Any

import dask.array
import numpy as np
import pyarrow as pa
from ray.util.dask import ray_dask_get

from storage.arrays import open_maps
from storage.objects import Objects
from storage.tables import write_table
from tasks.atlas import Regions

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
