import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.consistency import consistency

PAIRS = st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=3, max_size=60)


@given(PAIRS)
def test_both_correlations_are_scipys(pairs):
    x, y = np.array(pairs, float).T
    found = consistency(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(found.pearson)
        assert np.isnan(found.spearman)
    else:
        assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
        assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_pairs_without_a_map_are_left_out():
    logits = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    sums = np.array([2.0, np.nan, 6.0, 8.0])
    found = consistency(logits, sums)
    assert found.n == 3
    assert found.pearson == pytest.approx(1.0)


def test_a_curve_that_only_rises_is_ranked_perfectly_but_not_linear():
    logits = np.linspace(0, 5, 50)
    found = consistency(logits, np.exp(logits))
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson < 0.95


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_correlate_with_nothing(n):
    found = consistency(np.ones(n), np.ones(n))
    assert np.isnan(found.pearson)
    assert found.n == n
