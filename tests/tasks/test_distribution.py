import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.reductions.distribution import Counter, Distribution, buckets_of

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SIGNED = st.one_of(FINITE, st.just(0.0), st.just(-0.0), st.sampled_from([1e-45, -1e-45, 1.0, -1.0, 3.4028235e38]))
VALUES = st.lists(SIGNED, min_size=1, max_size=200)


def of(values, bits=5, rows=1):
    return Distribution.of(torch.tensor(values, dtype=torch.float32).reshape(-1, rows), bits)


def bound(sample, bits):
    return 2.0 ** -(bits + 1) * np.maximum(np.abs(sample), SMALLEST_NORMAL)


@given(VALUES, st.floats(0, 1), st.integers(1, 7))
def test_a_quantile_is_within_the_stated_bound_of_the_exact_one(values, share, bits):
    exact = np.quantile(np.array(values, np.float32).astype(np.float64), share, method="inverted_cdf")
    assert abs(of(values, bits).quantile(share)[0] - exact) <= bound(exact, bits)


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e30])
def test_quantiles_hold_with_heavy_ties_negatives_and_denormals(zeros, scale, device):
    random = np.random.default_rng(0)
    values = (random.standard_normal((5000, 3)) * scale).astype(np.float32)
    values[random.random(values.shape) < zeros] = 0
    distribution = Distribution.of(torch.from_numpy(values).to(device), 5)
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        exact = np.quantile(values.astype(np.float64), share, axis=0, method="inverted_cdf")
        assert (np.abs(distribution.quantile(share) - exact) <= bound(exact, 5)).all()


def test_zero_is_exact_and_shares_its_bucket_with_nothing():
    distribution = of([0.0] * 6 + [-0.0] * 3 + [1e-45, -1e-45])
    assert distribution.quantile(0.5)[0] == 0.0
    counts, buckets = distribution.table()
    assert counts.tolist() == [[1, 9, 1]]
    lower, upper = distribution.edges(buckets)
    assert lower[1] == upper[1] == 0.0
    assert distribution.positives.tolist() == [1]


@given(VALUES, st.integers(1, 7))
def test_buckets_are_ordered_as_the_values_are(values, bits):
    ordered = torch.tensor(sorted(values), dtype=torch.float32)
    assert (buckets_of(ordered, bits).diff() >= 0).all()


@given(VALUES, st.integers(1, 7))
def test_every_value_lies_between_its_buckets_edges(values, bits):
    exact = np.array(values, np.float32).astype(np.float64)
    buckets = buckets_of(torch.tensor(values, dtype=torch.float32), bits).numpy()
    lower, upper = of(values, bits).edges(buckets)
    assert (lower <= exact).all()
    assert (exact <= upper).all()
    assert (exact[exact > 0] > lower[exact > 0]).all()


@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_split_in_any_order_counts_the_same(parts, random):
    whole = of([value for part in parts for value in part])
    random.shuffle(parts)
    merged = Distribution.empty(1, 5)
    for part in parts:
        merged = merged.merge(of(part))
    np.testing.assert_array_equal(merged.keys, whole.keys)
    np.testing.assert_array_equal(merged.counts, whole.counts)


@given(VALUES, VALUES, VALUES)
def test_merging_is_associative_and_commutative_and_empty_changes_nothing(a, b, c):
    a, b, c = of(a), of(b), of(c)
    for left, right in [
        (a.merge(b).merge(c), a.merge(b.merge(c))),
        (a.merge(b), b.merge(a)),
        (Distribution.empty(1, 5).merge(a), a),
    ]:
        np.testing.assert_array_equal(left.keys, right.keys)
        np.testing.assert_array_equal(left.counts, right.counts)


def test_rows_are_counted_apart_whatever_lies_behind_them(device):
    values = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(device)
    counter = Counter(3, 5, device)
    counter.add(values[:4])
    counter.add(values[4:].transpose(-2, -1))
    together = counter.distribution()
    assert together.totals.tolist() == [140, 140, 140]
    for row in range(3):
        alone = Distribution.of(values[:, row : row + 1], 5)
        assert together.quantile(0.3)[row] == alone.quantile(0.3)[0]


@given(VALUES, st.floats(0, 1))
def test_at_most_the_asked_share_lies_strictly_above_a_threshold(values, share):
    threshold = of(values).above(share)[0]
    assert np.mean(np.array(values, np.float32).astype(np.float64) > threshold) <= share


def test_a_threshold_gives_away_no_more_than_its_bucket():
    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    threshold = of(values.tolist()).above(0.04)[0]
    assert 0.037 < np.mean(values > threshold) <= 0.04


def test_a_row_without_values_has_no_quantile():
    assert np.isnan(Distribution.empty(2, 5).quantile(0.5)).all()
    assert np.isnan(Distribution.empty(2, 5).above(0.5)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        of([1.0, value])


def test_distributions_of_different_buckets_do_not_merge():
    with pytest.raises(ValueError, match="5 bits into 1 of 6"):
        Distribution.empty(1, 6).merge(Distribution.empty(1, 5))
