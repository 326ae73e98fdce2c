"""Whole-archive figures read back from the maps, by Dask on Ray's scheduler."""

from collections.abc import Sequence
from typing import Any

import dask.array
import numpy as np
from ray.util.dask import ray_dask_get

from storage.arrays import open_maps
from storage.objects import Objects


def border_attention(run: Objects, method: str, share: float) -> np.ndarray[Any, Any]:
    """Share of a raw map's positive activation that lies in the border, [N, T] in [0, 1]; NaN where there is none.

    The border is `share` of each side, at least one cell. Attention there is where markers, tubes and collimation
    lie, and seldom a finding.
    """
    stored = open_maps(run, method)
    images, targets = stored.shape[:2]
    length = (stored.shards or stored.chunks)[0]  # one task a Zarr shard
    shards = tuple(min(length, images - start) for start in range(0, images, length))
    attention = dask.array.map_blocks(  # type: ignore[no-untyped-call]
        _shard_attention, run, method, share, chunks=(shards, (targets,)), dtype=np.float32, meta=np.zeros((0, 0), "f4")
    )
    return np.asarray(attention.compute(scheduler=ray_dask_get))


def _shard_attention(run: Objects, method: str, share: float, block_info: Any = None) -> np.ndarray[Any, Any]:
    start, stop = block_info[None]["array-location"][0]
    positive = np.maximum(np.asarray(open_maps(run, method)[start:stop], np.float32), 0)
    with np.errstate(invalid="ignore"):
        cells = tuple(range(2, positive.ndim))
        attention = (positive * _border(positive.shape[2:], share)).sum(cells) / positive.sum(cells)
    return np.asarray(attention)


def _border(size: Sequence[int], share: float) -> np.ndarray[Any, Any]:
    mask = np.ones(tuple(size), np.float32)
    margins = [max(1, round(share * side)) for side in size]
    mask[tuple(slice(margin, side - margin) for margin, side in zip(margins, size, strict=True))] = 0
    return mask
