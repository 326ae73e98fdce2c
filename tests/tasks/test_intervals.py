"""Intervals by the bootstrap over patients: against scipy's, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from tasks.consistency import ranks
from tasks.measures.intervals import Bootstrap, patient_groups
from tasks.measures.performance import Ranking


def seeded(groups, replicates=4000, confidence=0.95, seed=0):
    return Bootstrap.seeded(groups, replicates=replicates, confidence=confidence, seed=seed)


def singly(bootstrap, values):
    """The interval of the mean of values that are a group each."""
    low, high = bootstrap.mean_interval(values[:, None], np.ones((len(values), 1), np.int64))
    return low[0], high[0]


def test_a_replicate_draws_as_many_groups_as_there_are_evenly_and_the_same_for_the_same_seed():
    draws = seeded(50).draws
    assert (draws.sum(axis=1) == 50).all()
    assert draws.mean(axis=0) == pytest.approx(np.ones(50), abs=0.1)
    assert draws.var() == pytest.approx(1 - 1 / 50, abs=0.02)
    assert np.array_equal(draws, seeded(50).draws)
    assert not np.array_equal(draws, seeded(50, seed=1).draws)


def test_the_mean_has_scipys_interval_where_each_image_is_a_patient():
    values = np.random.default_rng(1).exponential(size=80)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert singly(seeded(80), values) == pytest.approx((expected.low, expected.high), abs=0.02)


@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_the_confidence_is_that_of_scipys_interval(confidence):
    values = np.random.default_rng(1).exponential(size=80)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, confidence_level=confidence,
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert singly(seeded(80, confidence=confidence), values) == pytest.approx((expected.low, expected.high), abs=0.02)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_correlations_have_scipys_interval_where_each_image_is_a_patient(kind):
    random = np.random.default_rng(4)
    x = random.normal(size=150)
    y = x + random.normal(size=150)
    function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[kind]
    expected = stats.bootstrap(
        (x, y), lambda a, b: function(a, b).statistic, method="percentile", paired=True, vectorized=False,
        n_resamples=2000, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    given = (x, y) if kind == "pearson" else (ranks(x), ranks(y))
    found = seeded(150).correlation_interval(*given, np.arange(150))
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_performance_of_each_replicate_is_scikit_learns_with_its_draws_as_weights():
    random = np.random.default_rng(0)
    groups, positive = random.integers(0, 12, 90), random.random(90) < 0.4
    scores = np.round(random.normal(positive), 1)
    bootstrap = seeded(12, replicates=20)
    auroc, precision = bootstrap.performance(Ranking.of(scores, positive), groups)
    weights = bootstrap.draws[:, groups]
    assert auroc == pytest.approx([roc_auc_score(positive, scores, sample_weight=row) for row in weights])
    expected = [average_precision_score(positive, scores, sample_weight=row) for row in weights]
    assert precision == pytest.approx(expected)


def test_replicates_come_in_chunks_that_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    bootstrap = seeded(30, replicates=100)
    sums, counts = random.normal(size=(30, 4)), random.integers(0, 3, (30, 4))
    ranking, groups = Ranking.of(random.random(50), random.random(50) < 0.4), random.integers(0, 30, 50)
    whole = *bootstrap.mean_interval(sums, counts), *bootstrap.performance(ranking, groups)
    monkeypatch.setattr("tasks.measures.intervals._ELEMENTS", 200)
    parts = *bootstrap.mean_interval(sums, counts), *bootstrap.performance(ranking, groups)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_replicates_are_the_same_bits_in_whichever_order_groups_are_added(scale):
    random = np.random.default_rng(0)
    bootstrap = seeded(300, replicates=50)
    sums, counts = scale * random.normal(size=(300, 3)), random.integers(1, 3, (300, 3))
    order = random.permutation(300)
    shuffled = Bootstrap(bootstrap.draws[:, order], 0.95)
    found = bootstrap.means(sums, counts)
    assert np.array_equal(found, shuffled.means(sums[order], counts[order]))
    expected = (bootstrap.draws @ sums) / (bootstrap.draws @ counts)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * scale)


def test_intervals_by_patient_hold_the_truth_of_clustered_data_and_intervals_by_image_do_not():
    """Synthetic: a thousand archives of 80 patients with 5 images each; images of one patient are much alike."""
    random = np.random.default_rng(0)
    patients, images, archives = 80, 5, 1000
    values = random.normal(size=(patients, 1, archives)) + 0.5 * random.normal(size=(patients, images, archives))
    low, high = seeded(patients, 1000).mean_interval(values.sum(1), np.full((patients, archives), images))
    assert ((low < 0) & (high > 0)).mean() == pytest.approx(0.95, abs=0.025)
    alone = values.reshape(-1, archives)
    low, high = seeded(patients * images, 1000).mean_interval(alone, np.ones(alone.shape, np.int64))
    assert ((low < 0) & (high > 0)).mean() < 0.75


def test_correlations_of_clustered_data_are_held_by_intervals_by_patient_alone():
    """Synthetic: the images of a patient are copies of one, so that only patients are independent."""
    random = np.random.default_rng(0)
    bootstraps, truth = (seeded(60, 500), seeded(300, 500)), 0.6
    by_patient, by_image = np.repeat(np.arange(60), 5), np.arange(300)
    held = np.zeros(2)
    for _ in range(200):
        x, y = random.multivariate_normal([0, 0], [[1, truth], [truth, 1]], 60).T.repeat(5, axis=1)
        for place, groups in enumerate((by_patient, by_image)):
            low, high = bootstraps[place].correlation_interval(x, y, groups)
            held[place] += low < truth < high
    assert held[0] / 200 > 0.9
    assert held[1] / 200 < 0.7


def test_a_sample_has_the_interval_of_its_own_size_and_not_of_the_archives():
    values = np.random.default_rng(3).normal(size=(400, 1))
    counts = np.ones((400, 1), np.int64)
    sampled = (np.arange(400) % 16 == 0)[:, None]
    whole = np.subtract(*seeded(400).mean_interval(values, counts)[::-1])
    part = np.subtract(*seeded(400).mean_interval(values * sampled, counts * sampled)[::-1])
    own = np.subtract(*seeded(25).mean_interval(values[sampled[:, 0]], counts[:25])[::-1])
    assert part == pytest.approx(own, rel=0.1)
    assert part > 3 * whole


def test_without_two_patients_there_is_no_interval():
    counts = np.zeros((10, 3), np.int64)
    counts[4, 1], counts[:2, 2] = 5, 1
    low, high = seeded(10).mean_interval(np.arange(30.0).reshape(10, 3) * (counts > 0), counts)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, True, False]
    values = np.random.default_rng(0).normal(size=(2, 6))
    assert np.isnan(seeded(10).correlation_interval(*values, np.full(6, 3))).all()


@pytest.mark.parametrize("x", [np.ones(6), np.zeros(0)])
def test_a_side_that_is_constant_or_empty_correlates_with_nothing(x):
    assert np.isnan(seeded(6).correlation_interval(x, np.arange(len(x)) * 1.0, np.arange(len(x)))).all()


def test_a_perfect_line_is_certain():
    x = np.random.default_rng(0).normal(size=40)
    assert seeded(40).correlation_interval(x, 1e-20 * x, np.arange(40)) == pytest.approx((1.0, 1.0))


def test_where_the_numbers_lie_does_not_change_how_sure_their_correlation_is():
    x, y = np.random.default_rng(0).normal(size=(2, 40))
    bootstrap, groups = seeded(20), np.arange(40) // 2
    far = bootstrap.correlation_interval(1e8 + x, 1e-20 * y - 1e-12, groups)
    assert far == pytest.approx(bootstrap.correlation_interval(x, y, groups), abs=1e-6)


def test_of_an_empty_archive_nothing_is_drawn():
    low, high = seeded(0).mean_interval(np.zeros((0, 2)), np.zeros((0, 2), np.int64))
    assert np.isnan([low, high]).all()


def test_images_of_one_patient_are_drawn_together_and_images_of_nobody_alone():
    groups = patient_groups(np.array([7, -1, 3, 7, -1, 3]), seed=0)
    assert groups[0] == groups[3]
    assert groups[2] == groups[5]
    assert sorted(set(groups.tolist())) == [0, 1, 2, 3]
    assert patient_groups(np.array([-1, -1]), seed=0).tolist() == [0, 1]
    assert patient_groups(np.zeros(0, np.int64), seed=0).tolist() == []


def test_more_patients_than_groups_are_spread_evenly_and_stay_whole():
    patients = np.random.default_rng(0).permutation(5000) % 1000
    groups = patient_groups(patients, seed=0, most=100)
    assert all(len(set(groups[patients == patient].tolist())) == 1 for patient in range(1000))
    sizes = [len(set(patients[groups == group].tolist())) for group in range(100)]
    assert max(sizes) - min(sizes) <= 1
    assert not np.array_equal(groups, patient_groups(patients, seed=1, most=100))


def test_groups_of_patients_give_intervals_as_wide_as_the_patients_own():
    values = np.random.default_rng(0).normal(size=(5000, 200))
    groups = patient_groups(np.arange(5000), seed=0, most=250)
    sums = np.stack([values[groups == group].sum(0) for group in range(250)])
    own = np.subtract(*seeded(5000, 500).mean_interval(values, np.ones(values.shape, np.int64))[::-1])
    grouped = np.subtract(*seeded(250, 500).mean_interval(sums, np.full(sums.shape, 20))[::-1])
    assert grouped.mean() == pytest.approx(own.mean(), rel=0.02)
