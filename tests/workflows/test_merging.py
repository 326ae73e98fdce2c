"""The tree that merges what shards left: any reduction, from any output, to the same bits as one after another."""

from collections.abc import Iterator
from functools import reduce

import numpy as np
import pytest

from storage.errors import RunError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from tasks.reductions.grouped import GroupedSums
from workflows.cluster import ray_cluster
from workflows.configuration import Engine
from workflows.merging import merge_tree, merged

SHARDS = 19


def sums(shard: int) -> GroupedSums:
    """Synthetic: of four cases, and they depend on the order of addition."""
    drop = np.random.default_rng(shard).random((4, 1)) * 10.0 ** (shard % 7)
    return GroupedSums.of(4 * SHARDS // 6 + 1, np.arange(4) % 2, (np.arange(4) + 4 * shard) // 6, drop)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Objects]:
    run = Objects(str(tmp_path_factory.mktemp("run")))
    for shard in range(SHARDS):
        Ledger(run, "maps").commit(Manifest("maps", shard, 4), {"npz": sums(shard).to_bytes()})
    with ray_cluster(Engine(), tmp_path_factory.mktemp("spill")):
        yield run


def by_eights() -> GroupedSums:
    parts = [sums(shard) for shard in range(SHARDS)]
    level = [reduce(GroupedSums.merge, parts[i : i + 8]) for i in range(0, SHARDS, 8)]
    return reduce(GroupedSums.merge, level)


def test_a_reduction_is_merged_eight_shards_at_a_time_in_their_order(run: Objects) -> None:
    found = merge_tree(run, "maps", "npz", range(SHARDS), GroupedSums)
    assert found.to_bytes() == by_eights().to_bytes()


def test_one_shard_is_a_tree_too(run: Objects) -> None:
    assert merge_tree(run, "maps", "npz", [5], GroupedSums).to_bytes() == sums(5).to_bytes()


def test_an_output_that_was_changed_is_not_merged(run: Objects) -> None:
    Ledger(run, "broken").commit(Manifest("broken", 0, 4), {"npz": sums(0).to_bytes()})
    run.put(Ledger(run, "broken").key(0, "npz"), sums(1).to_bytes())
    with pytest.raises(RunError, match="differ from the manifest's checksum"):
        merge_tree(run, "broken", "npz", [0], GroupedSums)


def test_parts_are_merged_from_left_to_right() -> None:
    parts = [sums(shard) for shard in range(5)]
    assert merged(iter(parts)) == reduce(GroupedSums.merge, parts).to_bytes()
