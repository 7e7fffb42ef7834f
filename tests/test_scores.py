"""Hardness scores, which samples they call hard, how well they find wrong labels, and whether they agree: by closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, spearmanr
from sklearn.metrics import jaccard_score

from hardbench.hard_samples.cuts import HardEasyOrder
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.selection import hardest, hardest_at_level
from hardbench.inversion import agreement
from hardbench.registry import SCORES
from hardbench.seeding import Seeds

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, -1.0], [3.0, 3.0, 3.0], [-5.0, -5.0, -4.0]])
LABELS = torch.tensor([0, 0, 2, 2])


def dynamics(logits=LOGITS, labels=LABELS, **more):
    """One network, the logits at its last point; at the first they are all 0."""
    points = torch.stack([torch.zeros_like(logits), logits])[None]
    return Recording(points, labels, torch.tensor([0, 9]), torch.arange(len(labels)), **more)


def score(name, **more):
    found = SCORES[name].call(dynamics(**more))
    assert found.shape == (1, 4)
    return found[0]


def test_scores_are_what_they_say():
    e = np.exp(LOGITS.double().numpy())
    np.testing.assert_allclose(score("confidence"), [-2, -1, -3, 4])
    np.testing.assert_allclose(score("energy"), -np.log(e.sum(1)), rtol=1e-6)
    np.testing.assert_allclose(score("softmax_confidence"), -(e / e.sum(1, keepdims=True)).max(1), rtol=1e-6)
    np.testing.assert_allclose(score("loss"), -np.log(e[range(4), LABELS] / e.sum(1)), rtol=1e-6)
    np.testing.assert_allclose(score("aum"), np.array([-2, 1, 0, -1]) / 2)  # mean over both points
    assert score("stragglers").tolist() == [0, 1, 1, 0]  # of equal logits the first is predicted


def test_stragglers_are_those_that_were_found():
    masks = torch.tensor([[True, False, True, False]])
    assert score("stragglers", stragglers=masks).tolist() == [1, 0, 1, 0]


def test_every_score_is_higher_for_a_sample_that_is_less_clear():
    """Right with a large margin, right with a small one: the second is the harder for every score that tells right ones apart."""
    logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    for name in SCORES:
        clear, unclear = SCORES[name].call(dynamics(logits, torch.tensor([0, 0])))[0]
        assert unclear >= clear if name == "stragglers" else unclear > clear, name


def test_a_network_that_stopped_counts_at_its_last_point():
    found = dynamics()
    stopped = torch.cat([found.logits, torch.full_like(found.logits[:, :1], torch.nan)], 1)
    both = torch.cat([stopped, torch.cat([found.logits, LOGITS[None, None] * 2], 1)])
    later = Recording(both, LABELS, torch.tensor([0, 9, 20]), found.index)
    np.testing.assert_allclose(SCORES["confidence"].call(later), [[-2, -1, -3, 4], [-4, -2, -6, 8]])
    np.testing.assert_allclose(SCORES["aum"].call(later)[0], np.array([-2, 1, 0, -1]) / 2)


# which samples are hard


def test_counts_are_exact_at_both_levels():
    generator = torch.Generator().manual_seed(3)
    scores, labels = torch.rand(1000, generator=generator), torch.randint(0, 4, (1000,), generator=generator)
    counts = torch.tensor([17, 0, 120, 1])
    for level, expected in (("class", counts.tolist()), ("dataset", None)):
        hard = hardest_at_level(scores, labels, counts, level)
        assert int(hard.sum()) == 138
        if expected:
            assert torch.bincount(labels[hard], minlength=4).tolist() == expected
            for c in (0, 2):
                assert scores[hard & (labels == c)].min() > scores[~hard & (labels == c)].max()
        else:
            assert scores[hard].min() > scores[~hard].max()
    assert int(hardest_at_level(scores, labels, torch.tensor([2000, 0, 0, 0]), "class").sum()) == int((labels == 0).sum())


def test_of_equal_scores_the_earlier_sample_is_hard():
    assert hardest(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2).tolist() == [True, False, True, False]


@pytest.mark.parametrize("reduce_hard", [False, True])
@pytest.mark.parametrize("train_ratio", [0.9, 0.5, 0.29])
def test_cuts_are_int_of_n_times_ratio(train_ratio, reduce_hard):
    hard = torch.zeros(1237, dtype=torch.bool)
    hard[torch.randperm(1237, generator=torch.Generator().manual_seed(0))[:107]] = True
    order = HardEasyOrder.of(hard, Seeds(0).child("split", 0))
    assert order.rows.sort().values.tolist() == list(range(1237))
    assert hard[order.rows].tolist() == [True] * 107 + [False] * 1130
    tests, before = set(), None
    for remaining in (0, 0.05, 0.25, 1):
        cut = order.train_slice(train_ratio, remaining, reduce_hard)
        trained = order.rows[cut.low : cut.high]
        kept = [int(n * train_ratio) for n in (107, 1130)]
        kept[0 if reduce_hard else 1] = int(kept[0 if reduce_hard else 1] * remaining)
        assert [int(hard[trained].sum()), int((~hard[trained]).sum())] == kept
        assert len(cut) == sum(kept)
        held = torch.cat([order.rows[: cut.hard_end], order.rows[cut.easy_start :]])
        assert len(held) == 107 - int(107 * train_ratio) + 1130 - int(1130 * train_ratio)
        assert not set(trained.tolist()) & set(held.tolist())
        tests.add(tuple(held.tolist()))
        assert before is None or before <= set(trained.tolist())  # fewer samples are some of more
        before = set(trained.tolist())
    assert len(tests) == 1  # whatever remains to train on


def test_a_split_depends_on_its_set_alone():
    hard = torch.arange(50) < 9
    one, again, other = (HardEasyOrder.of(hard, Seeds(4).child("split", s)).rows for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


# agreement


def test_jaccard_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    sets, labels = rng.random((3, 200)) < 0.3, rng.integers(0, 3, 200)
    whole, each = agreement.jaccard_matrix(sets), np.array([agreement.jaccard_matrix(sets[:, labels == c]) for c in range(4)])
    for i in range(3):
        for j in range(3):
            assert whole[i, j] == pytest.approx(jaccard_score(sets[i], sets[j]))
            assert each[1, i, j] == pytest.approx(jaccard_score(sets[i, labels == 1], sets[j, labels == 1]))
    assert np.isnan(each[3]).all()  # a class without samples
    assert agreement.jaccard(sets[0], ~sets[0]) == 0


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.normal(size=300), rng.integers(0, 2, 300).astype(float), rng.integers(0, 9, 300).astype(float)])
    scores[2] += scores[1] * 4
    np.testing.assert_allclose(agreement.spearman_matrix(scores), spearmanr(scores.T).statistic, atol=1e-12)


def test_stability_is_the_hypergeometric_z():
    left, right = np.arange(500) < 60, (np.arange(500) >= 40) & (np.arange(500) < 110)
    chance = hypergeom(500, 60, 70)
    z = (20 - chance.mean()) / chance.std()
    assert agreement.mean_overlap_z(np.stack([left, right])) == pytest.approx(z)
    same = (60 - 60 * 60 / 500) / hypergeom(500, 60, 60).std()
    assert agreement.mean_overlap_z(np.stack([left, right, left])) == pytest.approx((2 * z + same) / 3)
    assert np.isnan(agreement.mean_overlap_z(np.stack([left, np.zeros(500, bool)])))


def test_stability_of_random_sets_is_chance():
    """z has mean 0 and variance 1: over 200 draws of 2 sets the mean is within three standard errors of 0."""
    rng = np.random.default_rng(0)
    z = [agreement.mean_overlap_z(np.stack([rng.permutation(300) < 30, rng.permutation(300) < 45])) for _ in range(200)]
    assert abs(np.mean(z)) < 3 / np.sqrt(200)
    assert np.std(z) == pytest.approx(1, abs=0.2)
    assert agreement.mean_overlap_z(np.stack([np.arange(300) < 30] * 3)) > 15
    assert np.isnan(agreement.mean_overlap_z(np.ones((1, 9), bool)))
