"""Zarr outputs: shards written apart make one array, the same arrays make the same bytes, damage is refused."""

from pathlib import Path

import numpy as np
import pytest
import xarray

from storage.arrays import (
    MapsPlan,
    NamedArray,
    create_features,
    create_maps,
    delete_features,
    open_features,
    open_maps,
    read_array,
    write_arrays,
    write_features,
    write_maps,
)
from storage.objects import Objects

_PLAN = MapsPlan(images=10, shard_images=4, targets=3, size=(7, 7), methods=("grad-cam", "s-grad-cam"))


def _maps(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(10, 3, 7, 7)).astype(np.float16)


def _write(run: Objects, order: tuple[int, ...]) -> None:
    create_maps(run, _PLAN, dict.fromkeys(_PLAN.methods, "synthetic"), {})
    for start in order:
        part = slice(start, start + 4)
        maps = {name: _maps(seed)[part] for seed, name in enumerate(_PLAN.methods)}
        write_maps(run, start, maps, np.arange(30, dtype=np.int32).reshape(10, 3)[part])


def test_shards_written_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = Objects(str(tmp_path / "a")), Objects(str(tmp_path / "b"))
    _write(first, (0, 4, 8))
    _write(second, (8, 0, 4))
    assert first.list() == second.list()
    assert all(first.get(key) == second.get(key) for key in first.list())


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2, 2, 3)])
def test_features_are_read_image_by_image_and_leave_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    run = Objects(str(tmp_path))
    values = np.random.default_rng(0).normal(size=(10, *shape)).astype(np.float32)
    create_features(run, 10, 4, shape)
    for start in (8, 0):  # the shard in the middle has no image
        write_features(run, start, values[start : start + 4])
    read = np.asarray(open_features(run).oindex[np.array([9, 2, 5])])
    np.testing.assert_array_equal(read[:2], values[[9, 2]])
    assert np.isnan(read[2]).all()
    assert open_features(run).metadata.dimension_names == ("image", "feature", *("z", "y", "x")[1 - len(shape) :])
    delete_features(run)
    assert list(tmp_path.iterdir()) == []


def test_maps_read_back_as_written_and_open_with_xarray(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    _write(run, (0, 4, 8))
    np.testing.assert_array_equal(np.asarray(open_maps(run, "s-grad-cam")[...]), _maps(1))
    opened = xarray.open_zarr(tmp_path / "maps.zarr", consolidated=False)
    assert opened["grad-cam"].dims == ("image", "target", "y", "x")
    assert int(opened["classes"][9, 2]) == 29


def test_a_shard_that_was_not_written_reads_as_no_map(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    _write(run, (0,))
    assert np.isnan(np.asarray(open_maps(run, "grad-cam")[4:])).all()
    assert (np.asarray(open_maps(run, "classes")[4:]) == -1).all()


def test_a_damaged_chunk_is_refused_and_not_read_as_numbers(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    _write(run, (0, 4, 8))
    shard = tmp_path / "maps.zarr" / "grad-cam" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0x40
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"[Cc]hecksum"):
        open_maps(run, "grad-cam")[0:4]


def test_arrays_keep_their_axes_and_what_they_mean(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    arrays = {
        "importance/grad-cam/all": NamedArray(np.eye(3), ("feature", "class"), "synthetic"),
        "images": NamedArray(np.asarray(7), (), "count"),
    }
    write_arrays(run, "profile.zarr", arrays, {"classes": ["a", "b", "c"]})
    np.testing.assert_array_equal(read_array(run, "profile.zarr", "importance/grad-cam/all"), np.eye(3))
    assert read_array(run, "profile.zarr", "images") == 7
    opened = xarray.open_zarr(tmp_path / "profile.zarr", group="importance/grad-cam", consolidated=False)
    assert opened["all"].dims == ("feature", "class")
    assert opened["all"].attrs["meaning"] == "synthetic"


def test_volumes_and_the_steps_of_a_method_have_axes_of_their_own(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    plan = MapsPlan(5, 2, 3, (4, 6, 5), ("glas",), {"rglas-steps": 7}, ("glas",))
    create_maps(run, plan, dict.fromkeys(("glas", "rglas-steps"), "synthetic"), {})
    volumes = np.random.default_rng(0).normal(size=(2, 3, 4, 6, 5)).astype(np.float32)
    steps = np.random.default_rng(1).normal(size=(2, 3, 7, 4, 6, 5)).astype(np.float16)
    write_maps(run, 2, {"glas": volumes, "rglas-steps": steps}, np.zeros((2, 3), np.int32))
    opened = xarray.open_zarr(tmp_path / "maps.zarr", consolidated=False)
    assert opened["glas"].dims == ("image", "target", "z", "y", "x")
    assert opened["rglas-steps"].dims == ("image", "target", "step", "z", "y", "x")
    np.testing.assert_array_equal(opened["glas"][2:4], volumes)
    np.testing.assert_array_equal(opened["rglas-steps"][2:4], steps)
    assert plan.bytes() == 5 * 3 * 4 * 6 * 5 * (4 + 2 * 7)


def test_small_maps_share_an_inner_chunk_and_large_ones_do_not() -> None:
    assert MapsPlan(10, 4, 1000, (7, 7), ("grad-cam",)).chunk_targets("grad-cam") == 334
    assert MapsPlan(10, 4, 1000, (224, 224), ("grad-cam",)).chunk_targets("grad-cam") == 1
