"""Sums by class and group: against loops, and as a reduction with its laws."""

from functools import reduce

import numpy as np
import pytest

from tasks.reductions.grouped import GroupedSums

GROUPS, CLASSES, COLUMNS = 7, 4, 3


def drawn(seed, cases=60):
    """Synthetic cases; values that floats add up exactly, some of them unknown."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 99, (cases, COLUMNS)) / 16
    values[random.random(values.shape) < 0.3] = np.nan
    return random.integers(0, CLASSES, cases), random.integers(0, GROUPS, cases), values


def summed(seed):
    return GroupedSums.of(GROUPS, *drawn(seed))


def same(left, right):
    pairs = ((left.keys, right.keys), (left.sums, right.sums), (left.counts, right.counts))
    return left.groups == right.groups and all(
        np.array_equal(*pair) and pair[0].dtype == pair[1].dtype for pair in pairs
    )


def test_sums_and_counts_are_those_of_a_loop_over_the_known_values():
    classes, members, values = drawn(0)
    sums, counts = np.zeros((GROUPS, CLASSES, COLUMNS)), np.zeros((GROUPS, CLASSES, COLUMNS), int)
    for category, group, row in zip(classes, members, values, strict=True):
        for column, value in enumerate(row):
            if not np.isnan(value):
                sums[group, category, column] += value
                counts[group, category, column] += 1
    found = summed(0)
    assert found.classes.tolist() == sorted(set(classes))
    for column in range(COLUMNS):
        own, number = found.dense(column, np.array([1, 3]))
        assert np.array_equal(own, sums[:, [1, 3], column])
        assert np.array_equal(number, counts[:, [1, 3], column])
        own, number = found.of_all_classes().dense(column, np.array([0]))
        assert np.array_equal(own[:, 0], sums[:, :, column].sum(1))
        assert np.array_equal(number[:, 0], counts[:, :, column].sum(1))


def test_any_split_gives_the_sums_of_the_whole():
    cases = drawn(1)
    for seed in range(5):
        ends = np.sort(np.random.default_rng(seed).integers(0, 60, 3))
        parts = zip(*(np.split(array, ends) for array in cases), strict=True)
        assert same(reduce(GroupedSums.merge, (GroupedSums.of(GROUPS, *part) for part in parts)), summed(1))


def test_nothing_merged_with_something_is_that_and_merging_is_commutative_and_associative():
    nothing, one, two, three = GroupedSums.empty(GROUPS, COLUMNS), summed(1), summed(2), summed(3)
    assert same(nothing.merge(one), one)
    assert same(one.merge(nothing), one)
    assert same(one.merge(two), two.merge(one))
    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))


def test_no_case_is_nothing():
    none = GroupedSums.of(GROUPS, np.zeros(0, int), np.zeros(0, int), np.zeros((0, COLUMNS)))
    assert same(none, GroupedSums.empty(GROUPS, COLUMNS))
    assert none.classes.tolist() == []
    assert none.dense(0, np.array([0]))[1].tolist() == [[0]] * GROUPS


@pytest.mark.parametrize("other", [GroupedSums.empty(GROUPS + 1, COLUMNS), GroupedSums.empty(GROUPS, COLUMNS + 1)])
def test_sums_of_other_groups_or_columns_are_not_merged(other):
    with pytest.raises(ValueError, match="cannot merge"):
        summed(0).merge(other)


def test_they_come_back_from_their_bytes_and_the_same_sums_give_the_same_bytes():
    assert same(GroupedSums.from_bytes(summed(4).to_bytes()), summed(4))
    assert summed(4).to_bytes() == summed(4).to_bytes()
