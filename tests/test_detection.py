"""Detection by a score: closed forms against all orders of small cases, random orders, and the laws of the bootstrap."""

import itertools

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from hardbench.hard_samples import detection


def measures(score, positive, weights=None):
    """Average precision and AUROC; without weights also precision at the number of positives."""
    ranking = detection.Ranking(score, positive[None], ~positive)
    if weights is not None:
        return ranking.measure(np.asarray(weights)[:, None])[:, 0, 0]
    return np.append(detection.measures(score, positive[None], ~positive)[:, 0], ranking.precision_at_count())


def in_order(positive):
    """Average precision, AUROC and precision at the number of positives of samples in an order, the highest score first."""
    hits, places, total = np.cumsum(positive), np.arange(1, len(positive) + 1), positive.sum()
    pairs = [(~positive[place:]).sum() for place in np.flatnonzero(positive)]
    return np.array([(hits / places)[positive].mean(), np.sum(pairs) / (total * (~positive).sum()), hits[total - 1] / total])


def over_all_orders(score, positive):
    """The mean over all orders of samples in which no sample stands before one of a higher score."""
    orders = [list(order) for order in itertools.permutations(range(len(score)))]
    return np.mean([in_order(positive[order]) for order in orders if (np.diff(score[order]) <= 0).all()], axis=0)


@pytest.mark.parametrize("seed", range(25))
def test_ties_are_the_mean_over_all_their_orders(seed):
    """Up to seven samples of one to four different scores, positives and negatives drawn."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    score, positive = rng.integers(0, rng.integers(1, 5), n).astype(float), rng.random(n) < 0.5
    positive[:2] = True, False
    np.testing.assert_allclose(measures(score, positive), over_all_orders(score, positive), rtol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_a_weight_is_a_number_of_copies(seed):
    """Copies have equal scores, so they are ties of each other; a weight of 0 leaves a sample out."""
    rng = np.random.default_rng(seed)
    score, positive, weights = rng.integers(0, 4, 6).astype(float), rng.random(6) < 0.5, rng.integers(0, 3, 6)
    positive[:2], weights[:2] = (True, False), 1
    copies = np.repeat(np.arange(6), weights)
    expected = measures(score[copies], positive[copies])
    np.testing.assert_allclose(measures(score, positive, weights), expected[:2], rtol=1e-12)
    if len(copies) < 8:
        np.testing.assert_allclose(expected, over_all_orders(score[copies], positive[copies]), rtol=1e-12)


def test_ties_are_the_mean_over_random_orders():
    """A score of three values for 500 samples: a thousand orders, drawn, within four standard errors."""
    rng = np.random.default_rng(3)
    score, positive = rng.integers(0, 3, 500).astype(float), rng.random(500) < 0.2
    drawn = np.array([measures(score + 0.5 * rng.random(500), positive) for _ in range(1000)])
    assert (np.abs(measures(score, positive) - drawn.mean(0)) < 4 * drawn.std(0, ddof=1) / np.sqrt(1000) + 1e-12).all()


def test_without_ties_all_agree_with_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.1
    score = rng.normal(size=400) + positive
    precision, auroc, _ = measures(score, positive)
    assert precision == pytest.approx(average_precision_score(positive, score))
    assert auroc == pytest.approx(roc_auc_score(positive, score))
    ties = np.round(score)
    u = mannwhitneyu(ties[positive], ties[~positive]).statistic
    assert measures(ties, positive)[1] == pytest.approx(u / (positive.sum() * (~positive).sum()))


def test_random_scores_have_the_expectation_of_a_random_order():
    """(H_N + (n+ - 1)(N - H_N)/(N - 1))/N: a thousand draws within four standard errors, and a constant score exactly."""
    rng, n, positives = np.random.default_rng(1), 300, 9
    positive = np.arange(n) < positives
    harmonic = (1 / np.arange(1, n + 1)).sum()
    expected = (harmonic + (positives - 1) * (n - harmonic) / (n - 1)) / n
    drawn = np.array([measures(rng.random(n), positive)[0] for _ in range(1000)])
    assert abs(drawn.mean() - expected) < 4 * drawn.std(ddof=1) / np.sqrt(1000)
    np.testing.assert_allclose(measures(np.zeros(n), positive), [expected, 0.5, positives / n], rtol=1e-12)
    assert expected > positives / n


def test_an_oracle_and_its_negative():
    """1 for the oracle; sorted last, the k-th of p positives behind m negatives has precision k / (m + k)."""
    positive = np.arange(50) < 7
    rng = np.random.default_rng(2)
    k = np.arange(1, 8)
    for noise in (0 * positive, 0.5 * rng.random(50)):  # with and without ties
        np.testing.assert_allclose(measures(positive + noise, positive), [1, 1, 1])
    np.testing.assert_allclose(measures(-1.0 * positive + 0.5 * rng.random(50), positive), [(k / (43 + k)).mean(), 0, 0])
    tied = measures(-1.0 * positive, positive)  # seven at the end in any order: all of them are positive
    np.testing.assert_allclose(tied, [(k / (43 + k)).mean(), 0, 0])


def test_samples_without_a_score_are_left_out_and_other_kinds_are_no_negatives():
    rng = np.random.default_rng(4)
    kinds = np.stack([np.arange(60) < 8, (np.arange(60) >= 8) & (np.arange(60) < 20)])
    negative, score = np.arange(60) >= 20, rng.integers(0, 9, 60).astype(float)
    score[[2, 9, 33]] = np.nan
    ranking = detection.Ranking(score, kinds, negative)
    assert ranking.samples.tolist() == [7 + 39, 11 + 39]
    both = np.vstack([ranking.measure(np.ones((60, 1), dtype=int))[:, :, 0], ranking.precision_at_count()])
    for kind, values in zip(kinds, both.T, strict=True):
        rows = np.isfinite(score) & (kind | negative)
        np.testing.assert_allclose(values, measures(score[rows], kind[rows]), rtol=1e-12)


def test_without_positives_or_negatives_there_is_no_number():
    assert np.isnan(measures(np.arange(5.0), np.zeros(5, bool))).all()
    assert np.isnan(measures(np.arange(5.0), np.ones(5, bool))[:2]).all()
    assert np.isnan(measures(np.full(5, np.nan), np.arange(5) < 2)).all()


def test_intervals_are_those_of_the_usual_bootstrap():
    """Against 2 000 draws of N samples with replacement, and AUROC against its standard error by DeLong's components."""
    rng = np.random.default_rng(5)
    positive = np.arange(1200) < 150
    score = rng.normal(size=1200) + 1.2 * positive
    ranking = detection.Ranking(score, positive[None], ~positive)
    low, high = detection.intervals([ranking], 1200, np.random.default_rng(6), 2000)[:, :, 0, 0]
    weights = np.stack([np.bincount(rng.integers(0, 1200, 1200), minlength=1200) for _ in range(2000)], 1)
    usual = np.quantile(ranking.measure(weights)[:, 0], (0.025, 0.975), axis=-1)
    np.testing.assert_allclose(high - low, usual[1] - usual[0], rtol=0.12)
    np.testing.assert_allclose([low, high], usual, atol=0.01)
    above = score[positive][:, None] > score[~positive]
    spread = np.sqrt(above.mean(1).var(ddof=1) / 150 + above.mean(0).var(ddof=1) / 1050)
    assert high[1] - low[1] == pytest.approx(2 * 1.96 * spread, rel=0.12)


def test_an_interval_of_few_positives_leaves_out_resamples_without_any():
    ranking = detection.Ranking(np.arange(30.0), (np.arange(30) == 29)[None], np.arange(30) < 29)
    ends = detection.intervals([ranking], 30, np.random.default_rng(0), 200)[:, :2, 0, 0]
    np.testing.assert_array_equal(ends, 1)


# samples called hard


def test_detection_counts_and_its_interval():
    rng = np.random.default_rng(0)
    positive = rng.permutation(np.arange(2000) < 200)
    scores = positive + rng.normal(0, 0.7, 2000)
    found = scores > 0.9
    result = detection.detection(scores, found, positive, np.random.default_rng(1), 400)
    hits = (found & positive).sum()
    assert result["base_rate"] == 0.1
    assert result["recall"] == hits / 200
    assert result["precision"] == hits / found.sum()
    # the bootstrap of a share is the binomial's, within the noise of 400 resamples
    for name, count in (("recall", 200), ("precision", found.sum())):
        spread = 1.96 * np.sqrt(result[name] * (1 - result[name]) / count)
        assert result[f"{name}_high"] - result[f"{name}_low"] == pytest.approx(2 * spread, rel=0.2)
        assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]
    assert result["average_precision_low"] < result["average_precision"] < result["average_precision_high"]


def test_detection_without_anything_found_is_nan():
    result = detection.detection(np.zeros(9), np.zeros(9, bool), np.arange(9) < 2, np.random.default_rng(0), 10)
    expected = measures(np.zeros(9), np.arange(9) < 2)[0]
    assert (result["recall"], result["average_precision"]) == (0, pytest.approx(expected))
    assert np.isnan(result["precision"]) and np.isnan(result["precision_low"])
