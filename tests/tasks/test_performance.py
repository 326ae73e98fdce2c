"""AUROC and average precision, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tasks.measures.performance import Ranking


def drawn(seed, *, cases=200, distinct=1000, share=0.3):
    """Synthetic scores, some of them equal, and labels that they say something of; both labels occur."""
    random = np.random.default_rng(seed)
    positive = random.random(cases) < share
    positive[:2] = True, False
    scores = np.round(random.normal(positive, 1.5) * distinct / 8) / distinct
    return scores, positive, random


@pytest.mark.parametrize("distinct", [1_000_000, 40, 4])
@pytest.mark.parametrize("share", [0.5, 0.01])
@pytest.mark.parametrize("kind", ["counts", "fractions"])
def test_every_weighting_is_measured_as_scikit_learn_measures_it(distinct, share, kind):
    scores, positive, random = drawn(3, distinct=distinct, share=share)
    weights = random.integers(0, 4, (6, len(scores))) if kind == "counts" else random.random((6, len(scores)))
    weights[:, :2] += 1
    ranking = Ranking.of(scores, positive)
    auroc, precision = ranking.measure(weights[:, ranking.order])
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    assert auroc == pytest.approx(expected, abs=1e-12)
    expected = [average_precision_score(positive, scores, sample_weight=row) for row in weights]
    assert precision == pytest.approx(expected, abs=1e-12)


def test_one_positive_among_very_many_is_found():
    scores, positive = np.random.default_rng(0).random(200_000), np.zeros(200_000, bool)
    positive[17] = True
    ranking = Ranking.of(scores, positive)
    auroc, precision = ranking.measure(np.ones((1, len(scores)), np.int16))
    assert auroc == pytest.approx(roc_auc_score(positive, scores))
    assert precision == pytest.approx(average_precision_score(positive, scores))


def test_scores_that_are_all_equal_tell_nothing_apart():
    positive = np.array([True, False, False, True, False])
    ranking = Ranking.of(np.ones(5), positive)
    auroc, precision = ranking.measure(np.ones((1, 5), np.int64))
    assert auroc == [0.5]
    assert precision == [0.4]


def test_infinite_scores_that_are_equal_are_ties():
    positive = np.array([True, False, False])
    ranking = Ranking.of(np.array([np.inf, np.inf, -np.inf]), positive)
    assert ranking.measure(np.ones((1, 3), np.int64))[0] == [0.75]


@pytest.mark.parametrize("positive", [[True, True], [False, False], []])
def test_without_both_labels_there_is_nothing_to_tell_apart(positive):
    ranking = Ranking.of(np.arange(len(positive), dtype=float), np.array(positive, bool))
    auroc, precision = ranking.measure(np.ones((3, len(positive)), np.int16))
    assert np.isnan(auroc).tolist() == np.isnan(precision).tolist() == [True] * 3


def test_a_weighting_that_leaves_one_label_alone_is_measured_by_nothing():
    ranking = Ranking.of(np.array([0.9, 0.1]), np.array([True, False]))
    auroc, precision = ranking.measure(np.array([[1, 0], [0, 1], [1, 1]]))
    assert np.isnan(auroc).tolist() == np.isnan(precision).tolist() == [True, True, False]


def test_counts_beyond_32_bits_add_up():
    scores, positive, _ = drawn(1)
    ranking = Ranking.of(scores, positive)
    heavy = np.full((1, len(scores)), 2_000_000_000, np.int64)
    assert ranking.measure(heavy)[0] == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_a_case_without_a_score_is_refused():
    with pytest.raises(ValueError, match="without a score"):
        Ranking.of(np.array([0.5, np.nan]), np.array([True, False]))
