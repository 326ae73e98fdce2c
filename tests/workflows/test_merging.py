"""The tree that merges what shards left: any reduction, from any output, eight at a time in their order."""

from functools import reduce

import numpy as np
import pytest

from storage.errors import RunError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from tasks.reductions.grouped import GroupedSums
from workflows.merging import merge_tree, merged

SHARDS = 83  # three levels, the last but one of eight and three parts


def sums(shard: int) -> GroupedSums:
    """Synthetic: of four cases, and they depend on the order of addition."""
    drop = np.random.default_rng(shard).random((4, 1)) * 10.0 ** (shard % 7)
    return GroupedSums.of(2, np.arange(4) % 2, np.arange(4) // 2, drop)


@pytest.fixture(scope="module")
def run(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    run = Objects(str(tmp_path_factory.mktemp("run")))
    for shard in range(SHARDS):
        Ledger(run, "maps").commit(Manifest("maps", shard, 4), {"npz": sums(shard).to_bytes()})
    return run


def by_eights() -> GroupedSums:
    level = [sums(shard) for shard in range(SHARDS)]
    while len(level) > 1:
        level = [reduce(GroupedSums.merge, level[i : i + 8]) for i in range(0, len(level), 8)]
    return level[0]


def test_a_reduction_is_merged_eight_shards_at_a_time_in_their_order(run: Objects) -> None:
    found = merge_tree(run, "maps", "npz", range(SHARDS), GroupedSums)
    assert found.to_bytes() == by_eights().to_bytes()
    one_by_one = reduce(GroupedSums.merge, [sums(shard) for shard in range(SHARDS)])
    assert found.to_bytes() != one_by_one.to_bytes()  # the order of addition shows in these numbers


def test_a_few_shards_are_merged_without_a_task(run: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("workflows.merging._merge_committed_task")
    found = merge_tree(run, "maps", "npz", range(8), GroupedSums)
    assert found.to_bytes() == reduce(GroupedSums.merge, [sums(shard) for shard in range(8)]).to_bytes()


def test_one_shard_is_a_tree_too(run: Objects) -> None:
    assert merge_tree(run, "maps", "npz", [5], GroupedSums).to_bytes() == sums(5).to_bytes()


def test_an_output_that_was_changed_is_not_merged(run: Objects) -> None:
    Ledger(run, "broken").commit(Manifest("broken", 0, 4), {"npz": sums(0).to_bytes()})
    run.put(Ledger(run, "broken").key(0, "npz"), sums(1).to_bytes())
    with pytest.raises(RunError, match="differ from the manifest's checksum"):
        merge_tree(run, "broken", "npz", [0], GroupedSums)


def test_parts_are_merged_from_left_to_right() -> None:
    parts = [sums(shard) for shard in range(5)]
    assert merged(iter(parts)).to_bytes() == reduce(GroupedSums.merge, parts).to_bytes()
