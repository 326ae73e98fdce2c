"""Detectors of classes: against loops over images, and the laws of a reduction."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.reductions.detectors import STRONGEST, Detectors

FEATURES, CLASSES, IMAGES = 5, 3, 23


def archive(seed=0, images=IMAGES):
    """Synthetic activations with many ties, and concepts of the boxes that images have: of no class, one or several."""
    random = np.random.default_rng(seed)
    activation = torch.from_numpy(random.integers(-2, 3, (images, FEATURES, 2, 2)).astype(np.float32))
    boxed = random.random((images, CLASSES)) < 0.4
    counts = torch.from_numpy(random.integers(0, 3, (images, CLASSES, FEATURES)))
    return activation, boxed, counts


def of(parts, rows):
    activation, boxed, counts = parts
    image, category = np.nonzero(boxed[rows])
    return Detectors.of(counts[rows][image, category], category, activation[rows], rows, CLASSES)


def same(left, right):
    return left.to_bytes() == right.to_bytes()


def test_counts_are_those_of_a_loop_over_images_and_classes():
    activation, boxed, counts = archive()
    found = of((activation, boxed, counts), np.arange(IMAGES))
    for target in range(CLASSES):
        mine = counts[boxed[:, target], target].numpy()
        assert found.images[target] == len(mine) > 0
        assert np.array_equal(found.detected[:, target], (mine > 0).sum(0))
        assert np.array_equal(found.components[:, target], mine.sum(0))


def test_the_strongest_images_are_those_of_a_sort_by_falling_activation_and_then_by_row():
    parts = archive()
    found = of(parts, np.arange(IMAGES))
    for feature in range(FEATURES):
        peaks = parts[0][:, feature].amax((1, 2)).tolist()
        expected = sorted(range(IMAGES), key=lambda row: (-peaks[row], row))[:STRONGEST]
        assert found.strongest_row[feature].tolist() == expected
        assert found.strongest_value[feature].tolist() == [peaks[row] for row in expected]


@settings(deadline=None)
@given(st.permutations(range(IMAGES)), st.lists(st.integers(0, IMAGES), max_size=6))
def test_any_split_in_any_order_gives_the_same_detectors(order, ends):
    parts = archive()
    shards = np.split(np.array(order), sorted(ends))
    merged = reduce(Detectors.merge, (of(parts, rows) for rows in shards))
    assert same(merged, of(parts, np.arange(IMAGES)))


def test_nothing_merged_with_something_is_that_and_merging_is_associative():
    parts = archive()
    one, two, three = (of(parts, rows) for rows in np.split(np.arange(IMAGES), [4, 15]))
    for nothing in (Detectors.empty(FEATURES, CLASSES), Detectors.empty(0, CLASSES)):
        assert same(nothing.merge(one), one)
        assert same(one.merge(nothing), one)
    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
    assert same(one.merge(two), two.merge(one))


def test_fewer_images_than_are_kept_leave_places_empty():
    found = of(archive(), np.array([17, 3]))
    assert sorted(found.strongest_row[0, :2].tolist()) == [3, 17]
    assert (found.strongest_row[:, 2:] == -1).all()
    assert np.isneginf(found.strongest_value[:, 2:]).all()


@pytest.mark.parametrize("other", [(FEATURES + 1, CLASSES), (FEATURES, CLASSES + 1), (0, CLASSES + 1)])
def test_detectors_of_another_model_are_not_merged(other):
    with pytest.raises(ValueError, match="cannot merge detectors"):
        of(archive(), np.arange(3)).merge(Detectors.empty(*other))


def test_it_goes_through_bytes():
    found = of(archive(), np.arange(IMAGES))
    assert same(Detectors.from_bytes(found.to_bytes()), found)
    assert set(found.arrays()) == {"images", "detected", "components", "strongest_value", "strongest_row"}


def test_rates_are_shares_of_a_classs_images_and_the_best_features_have_the_highest():
    empty = Detectors.empty(3, 2)
    found = Detectors(
        np.array([4, 0]),
        np.array([[1, 0], [3, 0], [3, 0]]),
        empty.components,
        empty.strongest_value,
        empty.strongest_row,
    )
    nan = float("nan")
    np.testing.assert_array_equal(found.rate(), [[0.25, nan], [0.75, nan], [0.75, nan]])
    assert found.best(2).tolist() == [[1, 2], [-1, -1]]
    assert found.best(4).tolist() == [[1, 2, 0, -1], [-1, -1, -1, -1]]
