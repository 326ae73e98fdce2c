"""Joint moments of pairs: against sums over the whole, and as a reduction with its laws."""

from functools import reduce

import numpy as np
import pytest

from tasks.reductions.joint_moments import JointMoments


def pairs(seed, count=500):
    """Synthetic, skewed and correlated."""
    random = np.random.default_rng(seed)
    x = random.exponential(2.0, count)
    return x, 0.5 * x + random.normal(size=count)


def same(left, right):
    return np.array_equal(left.centre, right.centre) and np.array_equal(left.sums, right.sums)


def exact(x, y):
    """Central moments in longer floats."""
    x, y = (np.asarray(side, np.longdouble) for side in (x, y))
    x, y = x - x.mean(), y - y.mean()
    return np.array([[float((x**i * y**j).mean()) if i + j <= 4 else 0.0 for j in range(5)] for i in range(5)])


def test_moments_are_means_of_powers_about_the_mean():
    x, y = pairs(0)
    found = JointMoments.of(x, y)
    assert found.count == 500
    np.testing.assert_allclose(found.mean, [x.mean(), y.mean()])
    np.testing.assert_allclose(found.central(), exact(x, y), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("far", [0.0, 1e8])
def test_any_split_gives_the_moments_of_the_whole_also_where_the_mean_is_far_larger_than_the_spread(seed, far):
    x, y = pairs(seed)
    x, y = x + far, y - 3 * far
    ends = np.sort(np.random.default_rng(seed).integers(0, len(x), 4))
    parts = [JointMoments.of(*part) for part in zip(np.split(x, ends), np.split(y, ends), strict=True)]
    merged = reduce(JointMoments.merge, parts)
    assert merged.count == 500
    np.testing.assert_allclose(merged.central(), exact(x, y), rtol=1e-9, atol=1e-9)


def test_nothing_merged_with_something_is_that_and_merging_is_commutative_and_associative():
    nothing, one, two, three = JointMoments.empty(), *(JointMoments.of(*pairs(seed)) for seed in (1, 2, 3))
    assert same(nothing.merge(nothing), nothing)
    assert same(nothing.merge(one), one)
    assert same(one.merge(nothing), one)
    assert same(one.merge(two), two.merge(one))
    left, right = one.merge(two).merge(three), one.merge(two.merge(three))
    np.testing.assert_allclose(left.central(), right.central(), rtol=1e-9)


def test_without_pairs_there_is_no_mean_and_no_moment():
    nothing = JointMoments.of(np.zeros(0), np.zeros(0))
    assert same(nothing, JointMoments.empty())
    assert np.isnan(nothing.mean).all()
    assert np.isnan(nothing.central()).all()
