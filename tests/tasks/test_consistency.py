import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.consistency import consistency, mardia
from tasks.reductions.joint_moments import JointMoments

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


CORRELATED = """
import numpy as np
from tasks.consistency import consistency
from tasks.reductions.joint_moments import JointMoments
x, y = np.random.default_rng(0).normal(size=(2, 300_001))
found = consistency(x, x + y)
print(found.pearson.hex(), found.spearman.hex(), JointMoments.of(x, x + y).sums.tobytes().hex())
"""


def test_the_number_of_threads_changes_no_bit():
    found = {
        subprocess.run(
            [sys.executable, "-c", CORRELATED],
            env=os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), threads),
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_correlate_with_nothing(n):
    found = consistency(np.ones(n), np.ones(n))
    assert np.isnan(found.pearson)
    assert found.n == n


def mardia_by_loops(x, y):
    """Mardia's b1 and b2 as they are written: over all pairs of pairs."""
    pairs = np.stack([x - x.mean(), y - y.mean()], axis=1)
    inverse = np.linalg.inv(pairs.T @ pairs / len(pairs))
    skewness = sum((one @ inverse @ other) ** 3 for one in pairs for other in pairs) / len(pairs) ** 2
    return skewness, sum((one @ inverse @ one) ** 2 for one in pairs) / len(pairs)


SHAPES = {
    "normal": lambda random, n: random.multivariate_normal([3, -2], [[1, 0.8], [0.8, 4]], n).T,
    "skewed": lambda random, n: (random.exponential(size=n), random.normal(size=n)),
    "heavy-tailed": lambda random, n: random.standard_t(3, (2, n)),
    "bounded": lambda random, n: random.uniform(size=(2, n)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_normality_is_tested_as_mardia_writes_it(shape):
    x, y = SHAPES[shape](np.random.default_rng(5), 120)
    found = mardia(JointMoments.of(x, y))
    skewness, kurtosis = mardia_by_loops(x, y)
    assert found.skewness == pytest.approx(skewness, rel=1e-9)
    assert found.kurtosis == pytest.approx(kurtosis, rel=1e-9)
    assert found.p_skewness == pytest.approx(stats.chi2.sf(120 * skewness / 6, 4), rel=1e-9)
    assert found.p_kurtosis == pytest.approx(2 * stats.norm.sf(abs(kurtosis - 8) / np.sqrt(64 / 120)), rel=1e-9)
    assert found.normal == (min(found.p_skewness, found.p_kurtosis) >= 0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_correlation_that_counts_is_pearsons_where_pairs_are_normal_and_else_spearmans(shape):
    x, y = SHAPES[shape](np.random.default_rng(5), 2000)
    found = consistency(x, y)
    assert found.normal == (shape == "normal")
    assert found.chosen == (found.pearson if shape == "normal" else found.spearman)
    assert found.pearson != found.spearman


def test_each_test_rejects_five_percent_of_synthetic_normal_pairs():
    random = np.random.default_rng(0)
    found = [mardia(JointMoments.of(*random.normal(size=(2, 400)))) for _ in range(2000)]
    assert np.mean([item.p_skewness < 0.05 for item in found]) == pytest.approx(0.05, abs=0.015)
    assert np.mean([item.p_kurtosis < 0.05 for item in found]) == pytest.approx(0.05, abs=0.015)


def test_normality_does_not_depend_on_unit_origin_or_direction():
    x, y = SHAPES["skewed"](np.random.default_rng(1), 300)
    one = mardia(JointMoments.of(x, y))
    for other in ((1e6 * x + 1e9, y), (x, -1e-12 * y), (x + 2 * y, 3 * x - y), (y, x)):
        found = mardia(JointMoments.of(*other))
        assert (found.skewness, found.kurtosis) == pytest.approx((one.skewness, one.kurtosis), rel=1e-6)


def test_pairs_on_a_line_have_no_distribution_to_test():
    x = np.random.default_rng(0).normal(size=200)
    for y in (2 * x - 5, np.full(200, 1 / 3), x + 1e-7 * np.sin(x)):
        found = mardia(JointMoments.of(x, y))
        assert np.isnan([found.skewness, found.kurtosis, found.p_skewness, found.p_kurtosis]).all()
        assert found.normal is False
    assert consistency(x, 2 * x - 5).chosen == pytest.approx(1.0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_two_pairs_or_fewer_are_not_called_normal(n):
    assert mardia(JointMoments.of(np.arange(n), np.arange(n) ** 2)).normal is False


def test_normality_of_many_pairs_is_that_of_their_parts_together():
    x, y = SHAPES["normal"](np.random.default_rng(3), 200_000)
    whole = mardia(JointMoments.of(x, y))
    assert whole.normal
    assert consistency(x, y).normal
    assert not consistency(np.append(x[:70_000], 90 + x[:700]), np.append(y[:70_000], y[:700])).normal
    halves = JointMoments.of(x[:50_000], y[:50_000]).merge(JointMoments.of(x[50_000:], y[50_000:]))
    assert mardia(halves).p_skewness == pytest.approx(whole.p_skewness, rel=1e-6)
