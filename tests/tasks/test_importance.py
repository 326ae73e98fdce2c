import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.reductions.importance import Importance, principal_features
from tasks.reductions.moments import Moments


def test_a_class_without_an_image_has_no_importance():
    importance = Importance(np.array([[2.0, 0.0], [4.0, 0.0]]), np.array([2, 0]))
    np.testing.assert_array_equal(importance.matrix(), [[1.0, np.nan], [2.0, np.nan]])


def test_an_empty_importance_changes_nothing():
    importance = Importance(np.array([[2.0, 0.5], [4.0, -1.0]]), np.array([2, 3]))
    merged = Importance.empty(2, 2).merge(importance)
    np.testing.assert_array_equal(merged.sums, importance.sums)
    np.testing.assert_array_equal(merged.images, importance.images)


@pytest.mark.parametrize(("share", "kept"), [(0.05, 1), (0.1, 1), (0.11, 2), (0.5, 5), (1.0, 10)])
def test_the_share_is_rounded_up_to_whole_features(share, kept):
    matrix = np.random.default_rng(0).standard_normal((10, 3))
    assert principal_features(matrix, share=share, rank="value").sum(0).tolist() == [kept] * 3


def test_by_value_the_largest_come_first_and_of_equals_the_first():
    matrix = np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 0.0], [-9.0, 0.0]])
    mask = principal_features(matrix, share=0.25, rank="value")
    assert np.flatnonzero(mask[:, 0]).tolist() == [1]
    assert np.flatnonzero(mask[:, 1]).tolist() == [0]


def test_by_absolute_difference_the_farthest_from_the_mean_over_classes_come_first():
    matrix = np.array([[9.0, 9.0, 9.0], [0.0, 0.0, 3.0], [1.0, -2.0, 1.0]])
    mask = principal_features(matrix, share=0.3, rank="absdiff")
    assert [np.flatnonzero(column).tolist() for column in mask.T] == [[1], [2], [1]]


@pytest.mark.parametrize("rank", ["value", "absdiff"])
def test_a_class_without_importance_has_no_principal_feature_and_does_not_touch_the_others(rank):
    matrix = np.array([[1.0, 5.0], [2.0, 1.0], [3.0, 2.0]])
    with_unknown = np.insert(matrix, 1, np.nan, axis=1)
    mask = principal_features(with_unknown, share=0.3, rank=rank)
    assert not mask[:, 1].any()
    np.testing.assert_array_equal(mask[:, [0, 2]], principal_features(matrix, share=0.3, rank=rank))


ROWS = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e-3, 1e-3)), min_size=1, max_size=30)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_moments_of_parts_merge_to_the_moments_of_the_whole(parts):
    values = np.concatenate([np.array(part) for part in parts])
    merged = Moments.empty(2)
    for part in parts:
        merged = merged.merge(Moments.of(np.array(part)))
    assert merged.count == len(values)
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.variance(), values.var(0), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(merged.minimum, values.min(0))
    np.testing.assert_array_equal(merged.maximum, values.max(0))


def test_moments_of_nothing_have_no_variance():
    assert np.isnan(Moments.of(np.zeros((0, 3))).variance()).all()
