"""Arrays of a run: `profile.zarr`, written once as a whole; `maps.zarr`, `features.zarr` and `pixels.zarr`, written
shard by shard."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from storage.objects import Objects

_CHUNK_BYTES = 32 << 10  # smaller inner chunks cost more in bookkeeping than they save in reading
_PROFILE_CHUNK_BYTES = 8 << 20
_PIXEL_CHUNK_BYTES = 1 << 20  # a shard is read whole: its chunks are unpacked side by side


def _codecs() -> list[Any]:
    """zstd carries no checksum by default, so damage would read back as numbers: crc32c behind it refuses."""
    return [ZstdCodec(level=3), Crc32cCodec()]


@dataclass(frozen=True, slots=True)
class NamedArray:
    """An array on its way to Zarr: its axes' names and what its numbers mean."""

    values: np.ndarray[Any, Any]
    axes: tuple[str, ...]
    meaning: str


def write_arrays(run: Objects, key: str, arrays: Mapping[str, NamedArray], attributes: Mapping[str, Any]) -> None:
    """Replace the Zarr group `key` by these arrays; the same arrays give the same bytes."""
    run.delete(key)
    store = run.zarr(key)
    root = zarr.create_group(store, attributes=dict(attributes))
    for name in sorted(arrays):
        array = arrays[name]
        values = np.asarray(array.values, order="C")
        rows = max(1, _PROFILE_CHUNK_BYTES // max(1, values[:1].nbytes)) if values.ndim else 1
        written = root.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(max(1, min(rows, values.shape[0])), *(max(1, side) for side in values.shape[1:]))
            if values.ndim
            else "auto",
            compressors=_codecs(),
            dimension_names=array.axes,
            attributes={"meaning": array.meaning},
        )
        if values.size:
            written[...] = values


def read_array(run: Objects, key: str, name: str) -> np.ndarray[Any, Any]:
    """One array of a group, whole. Raises FileNotFoundError (zarr's) when it is not there."""
    array = zarr.open_array(run.zarr(key, read_only=True), path=name, mode="r")
    return np.asarray(array[...])


def array_names(run: Objects, key: str) -> list[str]:
    """Paths of all arrays below the group, sorted."""
    suffix = "/zarr.json"
    found = []
    for entry in run.list(key):
        name = entry.removeprefix(f"{key}/").removesuffix(suffix)
        if entry.endswith(suffix) and name != "zarr.json" and b'"node_type": "array"' in run.get(entry):
            found.append(name)
    return sorted(found)


@dataclass(frozen=True, slots=True)
class MapsPlan:
    """The shape of `maps.zarr`: images N, images a shard, target columns T, map size (H, W) or (D, H, W).

    steps: methods that have several maps a column, one after another, and how many; wide: methods in float32, where all
    others are float16.
    """

    images: int
    shard_images: int
    targets: int
    size: tuple[int, ...]
    methods: tuple[str, ...]
    steps: Mapping[str, int] = field(default_factory=dict)
    wide: tuple[str, ...] = ()

    def chunk_targets(self, method: str) -> int:
        """Targets in one inner chunk: one for large maps, several where a single map is a few bytes."""
        return max(1, min(self.targets, _CHUNK_BYTES // (2 * prod(self.shape(method)))))

    def bytes(self) -> int:
        """Uncompressed bytes of all maps."""
        return sum(map(self.method_bytes, (*self.methods, *self.steps)))

    def method_bytes(self, method: str) -> int:
        """Those of one array."""
        return np.dtype(self.dtype(method)).itemsize * self.images * self.targets * prod(self.shape(method))

    def shape(self, method: str) -> tuple[int, ...]:
        """What a target of an image has: one map, or one a step."""
        return (self.steps[method], *self.size) if method in self.steps else self.size

    def dtype(self, method: str) -> str:
        return "float32" if method in self.wide else "float16"

    def axes(self, method: str) -> tuple[str, ...]:
        """Names of an array's axes."""
        return ("image", "target", *(("step",) if method in self.steps else ()), *("z", "y", "x")[-len(self.size) :])


_MAPS = "maps.zarr"


def create_maps(run: Objects, plan: MapsPlan, meanings: Mapping[str, str], attributes: Mapping[str, Any]) -> None:
    """Create the empty arrays of pass 2, before any worker writes a region."""
    run.delete(_MAPS)
    root = zarr.create_group(run.zarr(_MAPS), attributes=dict(attributes))
    for method in (*plan.methods, *plan.steps):
        cells, together = plan.shape(method), plan.chunk_targets(method)
        targets = -(-plan.targets // together) * together
        root.create_array(
            method,
            shape=(plan.images, plan.targets, *cells),
            dtype=plan.dtype(method),
            chunks=(1, together, *cells),
            shards=(plan.shard_images, targets, *cells),
            compressors=_codecs(),
            fill_value=float("nan"),
            dimension_names=plan.axes(method),
            attributes={"meaning": meanings[method]},
        )
    root.create_array(
        "classes",
        shape=(plan.images, plan.targets),
        dtype="int32",
        chunks=(plan.shard_images, plan.targets),
        compressors=_codecs(),
        fill_value=-1,
        dimension_names=("image", "target"),
        attributes={"meaning": "class of each map; -1: none (rejected image, or fewer labels than columns)"},
    )


def write_maps(
    run: Objects, start: int, maps: Mapping[str, np.ndarray[Any, Any]], classes: np.ndarray[Any, Any]
) -> None:
    """Write one whole shard's region, whose first image is row `start`. Only one task may own a shard."""
    root = zarr.open_group(run.zarr(_MAPS), mode="r+")
    for name, values in {**maps, "classes": classes}.items():
        target = root[name]
        if not isinstance(target, zarr.Array):
            raise KeyError(name)
        target[start : start + len(values)] = values


def open_maps(run: Objects, method: str) -> zarr.Array[Any]:
    """The maps [N, T, H, W] of one method (volumes: [N, T, D, H, W]), or `classes` [N, T], to be read lazily."""
    return zarr.open_array(run.zarr(_MAPS, read_only=True), path=method, mode="r")


_FEATURES = "features.zarr"


def create_features(run: Objects, images: int, shard_images: int, shape: tuple[int, ...]) -> None:
    """Create the empty array of activations [N, *shape], float32, before any worker writes a region."""
    run.delete(_FEATURES)
    zarr.create_array(
        run.zarr(_FEATURES),
        shape=(images, *shape),
        dtype="float32",
        chunks=(1, *shape),
        shards=(shard_images, *shape),
        compressors=_codecs(),
        fill_value=float("nan"),
        dimension_names=("image", "feature", *("z", "y", "x")[1 - len(shape) :]),
        attributes={"meaning": "activation of the target layer; NaN: an image that is not learned from"},
    )


def write_features(run: Objects, start: int, values: np.ndarray[Any, Any]) -> None:
    """Write one whole shard's region, whose first image is row `start`. Only one task may own a shard."""
    zarr.open_array(run.zarr(_FEATURES), mode="r+")[start : start + len(values)] = values


def open_features(run: Objects) -> zarr.Array[Any]:
    """The activations [N, F, ...], to be read image by image."""
    return zarr.open_array(run.zarr(_FEATURES, read_only=True), mode="r")


def delete_features(run: Objects) -> None:
    run.delete(_FEATURES)
    run.sweep(_FEATURES)


_PIXELS = "pixels.zarr"


def create_pixels(run: Objects, images: int, shard_images: int, shape: tuple[int, ...]) -> None:
    """Create the empty array of pictures [N, *shape], uint8, before any worker writes a region. shape: (channels, H, W)
    or (channels, D, H, W)."""
    run.delete(_PIXELS)
    most = max(1, _PIXEL_CHUNK_BYTES // prod(shape))
    together = next(length for length in range(min(most, shard_images), 0, -1) if shard_images % length == 0)
    zarr.create_array(
        run.zarr(_PIXELS),
        shape=(images, *shape),
        dtype="uint8",
        chunks=(together, *shape),
        shards=(shard_images, *shape),
        compressors=_codecs(),
        fill_value=0,
        dimension_names=("image", "channel", *("z", "y", "x")[1 - len(shape) :]),
        attributes={"meaning": "picture as it is learned from; 0: an image that cannot be decoded"},
    )


def write_pixels(run: Objects, start: int, values: np.ndarray[Any, Any]) -> None:
    """Write one whole shard's region, whose first image is row `start`. Only one task may own a shard."""
    zarr.open_array(run.zarr(_PIXELS), mode="r+")[start : start + len(values)] = values


def open_pixels(run: Objects) -> zarr.Array[Any]:
    """The pictures [N, channels, ...], to be read shard by shard."""
    return zarr.open_array(run.zarr(_PIXELS, read_only=True), mode="r")
